#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "parallel/collective.h"
#include "parallel/communicator.h"
#include "parallel/watchdog.h"

namespace scone {
namespace {

class ThreadGroup;

/// What the world and all groups split from it share, so that they fail together.
struct ThreadWorld {
  std::mutex mutex;
  const char* failure = nullptr;  // why no wait may succeed any more
  std::vector<ThreadGroup*> groups;

  void fail(const char* why);
};

/// What the ranks of one group share: a barrier, and a slot a rank to show the others its
/// arguments.
class ThreadGroup {
 public:
  ThreadGroup(ThreadWorld& world, std::vector<int> members)
      : members_(std::move(members)),
        pointers_(members_.size()),
        counts_(members_.size()),
        world_(world) {
    std::lock_guard lock(world_.mutex);
    world_.groups.push_back(this);
  }
  ~ThreadGroup() {
    std::lock_guard lock(world_.mutex);
    std::erase(world_.groups, this);
  }
  ThreadGroup(const ThreadGroup&) = delete;
  ThreadGroup& operator=(const ThreadGroup&) = delete;

  ThreadWorld& world() { return world_; }

  /// reads_after: the ranks will use what the others show, until end_reading(). A rank that must
  /// leave because of a failure takes its arguments with it, so it stays while anyone uses them.
  void barrier(const Communicator& of, const char* collective, bool reads_after) {
    const CollectiveScope scope(of, collective);
    std::unique_lock lock(world_.mutex);
    const std::int64_t generation = generation_;
    if (world_.failure == nullptr && ++waiting_ == members_.size()) {
      waiting_ = 0;
      ++generation_;
      if (reads_after) readers_ += members_.size();
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return generation_ != generation || world_.failure != nullptr; });
    if (generation_ != generation) return;  // all were here, whatever has happened since
    changed_.wait(lock, [&] { return readers_ == 0; });
    fail_collective(of, collective, world_.failure);
  }

  void end_reading() {
    std::lock_guard lock(world_.mutex);
    if (--readers_ == 0 && world_.failure != nullptr) changed_.notify_all();
  }

  std::vector<int> members_;
  std::vector<const void*> pointers_;
  std::vector<std::span<const std::int64_t>> counts_;

 private:
  friend struct ThreadWorld;
  ThreadWorld& world_;
  std::condition_variable changed_;
  std::size_t waiting_ = 0;
  std::size_t readers_ = 0;
  std::int64_t generation_ = 0;
};

void ThreadWorld::fail(const char* why) {
  std::lock_guard lock(mutex);
  if (failure == nullptr) failure = why;
  for (ThreadGroup* group : groups) group->changed_.notify_all();
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank, std::string name)
      : group_(std::move(group)),
        rank_(static_cast<std::size_t>(rank)),
        ranks_(group_->members_.size()),
        name_(std::move(name)) {}

  int rank() const override { return static_cast<int>(rank_); }
  int size() const override { return static_cast<int>(ranks_); }
  std::string describe() const override { return fmt::format("{} threads", size()); }
  const std::string& name() const override { return name_; }
  std::span<const int> members() const override { return group_->members_; }

  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    check_color(*this, color);
    // Every rank shows its color and a place for its group, which the first of that color fills.
    struct Shown {
      int color;
      std::shared_ptr<ThreadGroup> group;
    } own{color, nullptr};
    auto of_rank = [&](std::size_t r) { return static_cast<const Shown*>(pointer(r)); };
    std::size_t leader = ranks_;
    int new_rank = 0;
    {
      Meeting meeting(*this, "split", &own, {});
      std::vector<int> members;
      for (std::size_t r = 0; r < ranks_; ++r) {
        if (of_rank(r)->color != color) continue;
        if (leader == ranks_) leader = r;
        if (r < rank_) ++new_rank;
        members.push_back(group_->members_[r]);
      }
      if (leader == rank_) own.group = std::make_shared<ThreadGroup>(group_->world(), members);
      meeting.finish();
    }
    Meeting meeting(*this, "split", &own, {});
    auto group = of_rank(leader)->group;
    meeting.finish();
    return std::make_unique<ThreadCommunicator>(std::move(group), new_rank, name);
  }

  void cancel() override { group_->world().fail("cancelled"); }
  void barrier() override { group_->barrier(*this, "barrier", false); }

  void all_reduce(std::span<float> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<double> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<std::int64_t> values, ReduceOp op) override { reduce(values, op); }

  void broadcast(std::span<std::byte> bytes, int root) override {
    check_root(*this, root);
    Meeting meeting(*this, "broadcast", bytes.data(), {});
    const auto source = static_cast<std::size_t>(root);
    if (rank_ != source && !bytes.empty()) std::memcpy(bytes.data(), pointer(source), bytes.size());
    meeting.finish();
  }

  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    const auto length = static_cast<std::int64_t>(bytes.size());
    Meeting meeting(*this, "all_gather", bytes.data(), {&length, 1});
    std::vector<std::vector<std::byte>> result;
    for (std::size_t r = 0; r < ranks_; ++r) {
      const auto* begin = static_cast<const std::byte*>(pointer(r));
      result.emplace_back(begin, begin + counts(r)[0]);
    }
    meeting.finish();
    return result;
  }

  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                  std::size_t element_bytes) override {
    check_exchange(*this, "all_to_all", send, send_counts, receive, receive_counts, element_bytes);
    Meeting meeting(*this, "all_to_all", send.data(), send_counts);
    std::size_t written = 0;
    for (std::size_t r = 0; r < ranks_; ++r) {
      const std::int64_t count = counts(r)[rank_];
      if (count != receive_counts[r])
        meeting.fail(fmt::format("expects {} elements of rank {}, which sends {}",
                                 receive_counts[r], group_->members_[r], count));
      const std::size_t length = static_cast<std::size_t>(count) * element_bytes;
      if (length > 0)
        std::memcpy(receive.data() + written,
                    static_cast<const std::byte*>(pointer(r)) +
                        slice_begin(counts(r), rank_) * element_bytes,
                    length);
      written += length;
    }
    meeting.finish();
  }

  void reduce_scatter(std::span<const float> values, std::span<const std::int64_t> slice_counts,
                      std::span<float> slice) override {
    check_slices(*this, "reduce_scatter", values.size(), slice_counts, slice.size());
    Meeting meeting(*this, "reduce_scatter", values.data(), slice_counts);
    check_same_counts(meeting, slice_counts);
    const std::size_t begin = slice_begin(slice_counts, rank_);
    for (std::size_t r = 0; r < ranks_; ++r) {
      const float* of_rank = static_cast<const float*>(pointer(r)) + begin;
      for (std::size_t i = 0; i < slice.size(); ++i)
        slice[i] = r == 0 ? of_rank[i] : slice[i] + of_rank[i];
    }
    meeting.finish();
  }

  void all_gather(std::span<float> values, std::span<const std::int64_t> slice_counts) override {
    check_counts(*this, "all_gather", "values", slice_counts, values.size());
    Meeting meeting(*this, "all_gather", values.data(), slice_counts);
    check_same_counts(meeting, slice_counts);
    std::size_t begin = 0;
    for (std::size_t r = 0; r < ranks_; ++r) {
      const auto count = static_cast<std::size_t>(slice_counts[r]);
      if (r != rank_ && count > 0)
        std::memcpy(values.data() + begin, static_cast<const float*>(pointer(r)) + begin,
                    count * sizeof(float));
      begin += count;
    }
    meeting.finish();
  }

  std::unique_ptr<PendingCollective> start_all_reduce_sum(std::span<float> values) override {
    all_reduce(values, ReduceOp::sum);
    return std::make_unique<DoneCollective>();
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(
      std::span<const float> values, std::span<const std::int64_t> slice_counts,
      std::span<float> slice) override {
    reduce_scatter(values, slice_counts, slice);
    return std::make_unique<DoneCollective>();
  }
  std::unique_ptr<PendingCollective> start_all_to_all(std::span<const std::byte> send,
                                                      std::span<const std::int64_t> send_counts,
                                                      std::span<std::byte> receive,
                                                      std::span<const std::int64_t> receive_counts,
                                                      std::size_t element_bytes) override {
    all_to_all(send, send_counts, receive, receive_counts, element_bytes);
    return std::make_unique<DoneCollective>();
  }

 private:
  /// Shows this rank's arguments to the others, and lasts while it uses theirs.
  class Meeting {
   public:
    Meeting(const ThreadCommunicator& of, const char* collective, const void* pointer,
            std::span<const std::int64_t> counts)
        : of_(of), collective_(collective) {
      of.group_->pointers_[of.rank_] = pointer;
      of.group_->counts_[of.rank_] = counts;
      of.group_->barrier(of, collective, true);
    }
    ~Meeting() {
      if (reading_) of_.group_->end_reading();
    }
    Meeting(const Meeting&) = delete;
    Meeting& operator=(const Meeting&) = delete;

    /// Waits until all others have finished too.
    void finish() {
      reading_ = false;
      of_.group_->end_reading();
      of_.group_->barrier(of_, collective_, false);
    }

    /// Throws, once the others no longer use this rank's arguments, which go with it.
    [[noreturn]] void fail(const std::string& what) {
      finish();
      fail_collective(of_, collective_, what);
    }

   private:
    const ThreadCommunicator& of_;
    const char* collective_;
    bool reading_ = true;
  };

  const void* pointer(std::size_t r) const { return group_->pointers_[r]; }
  std::span<const std::int64_t> counts(std::size_t r) const { return group_->counts_[r]; }

  static std::size_t slice_begin(std::span<const std::int64_t> counts, std::size_t r) {
    return static_cast<std::size_t>(std::accumulate(
        counts.begin(), counts.begin() + static_cast<std::ptrdiff_t>(r), std::int64_t{0}));
  }

  void check_same_counts(Meeting& meeting, std::span<const std::int64_t> own) const {
    for (std::size_t r = 0; r < ranks_; ++r)
      if (!std::equal(own.begin(), own.end(), counts(r).begin(), counts(r).end()))
        meeting.fail(fmt::format("rank {} gives other counts", group_->members_[r]));
  }

  template <class T>
  void reduce(std::span<T> values, ReduceOp op) {
    const auto elements = static_cast<std::int64_t>(values.size());
    Meeting meeting(*this, "all_reduce", values.data(), {&elements, 1});
    check_same_counts(meeting, {&elements, 1});
    // Each rank reduces its slice of the elements over all ranks, and writes it to all of them.
    const std::size_t begin = values.size() * rank_ / ranks_;
    const std::size_t end = values.size() * (rank_ + 1) / ranks_;
    auto of_rank = [&](std::size_t r) { return static_cast<T*>(const_cast<void*>(pointer(r))); };
    for (std::size_t i = begin; i < end; ++i) {
      T result = of_rank(0)[i];
      for (std::size_t r = 1; r < ranks_; ++r) {
        const T value = of_rank(r)[i];
        if (op == ReduceOp::sum) result += value;
        if (op == ReduceOp::max) result = std::max(result, value);
        if (op == ReduceOp::min) result = std::min(result, value);
      }
      for (std::size_t r = 0; r < ranks_; ++r) of_rank(r)[i] = result;
    }
    meeting.finish();
  }

  std::shared_ptr<ThreadGroup> group_;
  std::size_t rank_, ranks_;
  std::string name_;
};

}  // namespace

void run_as_threads(int ranks, const std::function<void(Communicator&)>& body) {
  ThreadWorld world;
  std::vector<int> members(static_cast<std::size_t>(ranks));
  std::iota(members.begin(), members.end(), 0);
  const auto group = std::make_shared<ThreadGroup>(world, members);
  std::mutex mutex;
  std::exception_ptr first_error;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadCommunicator communicator(group, rank, "world");
      try {
        body(communicator);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!first_error) first_error = std::current_exception();
        world.fail("another rank has failed");
      }
    });
  }
  for (auto& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace scone
