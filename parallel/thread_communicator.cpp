#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "parallel/communicator.h"

namespace scone {
namespace {

/// What the ranks of one group share: a barrier, and a slot a rank to show the others its
/// arguments.
class ThreadGroup {
 public:
  explicit ThreadGroup(int ranks)
      : pointers_(static_cast<std::size_t>(ranks)), counts_(static_cast<std::size_t>(ranks)) {}

  int size() const { return static_cast<int>(pointers_.size()); }

  void barrier(int rank) {
    std::unique_lock lock(mutex_);
    const std::int64_t generation = generation_;
    if (++waiting_ == size()) {
      waiting_ = 0;
      ++generation_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return generation_ != generation || failed_; });
    }
    if (failed_) throw std::runtime_error(fmt::format("rank {}: another rank has failed", rank));
  }

  void fail() {
    std::lock_guard lock(mutex_);
    failed_ = true;
    changed_.notify_all();
  }

  std::vector<const void*> pointers_;
  std::vector<std::span<const std::int64_t>> counts_;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  std::int64_t generation_ = 0;
  bool failed_ = false;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(ThreadGroup& group, int rank) : group_(group), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_.size(); }
  std::string describe() const override { return fmt::format("{} threads", size()); }
  void barrier() override { group_.barrier(rank_); }

  void all_reduce(std::span<float> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<double> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<std::int64_t> values, ReduceOp op) override { reduce(values, op); }

  void broadcast(std::span<std::byte> bytes, int root) override {
    show(bytes.data());
    if (rank_ != root && !bytes.empty())
      std::memcpy(bytes.data(), group_.pointers_.at(static_cast<std::size_t>(root)), bytes.size());
    barrier();
  }

  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    const auto length = static_cast<std::int64_t>(bytes.size());
    group_.counts_[static_cast<std::size_t>(rank_)] = {&length, 1};
    show(bytes.data());
    std::vector<std::vector<std::byte>> result;
    for (std::size_t r = 0; r < group_.pointers_.size(); ++r) {
      const auto* begin = static_cast<const std::byte*>(group_.pointers_[r]);
      result.emplace_back(begin, begin + group_.counts_[r][0]);
    }
    barrier();
    return result;
  }

  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                  std::size_t element_bytes) override {
    group_.counts_[static_cast<std::size_t>(rank_)] = send_counts;
    show(send.data());
    const auto me = static_cast<std::size_t>(rank_);
    std::size_t written = 0;
    for (std::size_t r = 0; r < group_.pointers_.size(); ++r) {
      const auto counts = group_.counts_[r];
      if (counts[me] != receive_counts[r])
        throw std::invalid_argument(
            fmt::format("all_to_all: rank {} expects {} elements of rank {}, which sends {}", rank_,
                        receive_counts[r], r, counts[me]));
      std::int64_t skipped = 0;
      for (std::size_t q = 0; q < me; ++q) skipped += counts[q];
      const std::size_t length = static_cast<std::size_t>(counts[me]) * element_bytes;
      if (length > 0)
        std::memcpy(receive.data() + written,
                    static_cast<const std::byte*>(group_.pointers_[r]) +
                        static_cast<std::size_t>(skipped) * element_bytes,
                    length);
      written += length;
    }
    barrier();
  }

 private:
  /// Shows a pointer to the others, and waits until all have shown theirs.
  void show(const void* pointer) {
    group_.pointers_[static_cast<std::size_t>(rank_)] = pointer;
    barrier();
  }

  template <class T>
  void reduce(std::span<T> values, ReduceOp op) {
    show(values.data());
    // Each rank reduces its slice of the elements over all ranks, and writes it to all of them.
    const auto ranks = group_.pointers_.size();
    const std::size_t begin = values.size() * static_cast<std::size_t>(rank_) / ranks;
    const std::size_t end = values.size() * (static_cast<std::size_t>(rank_) + 1) / ranks;
    auto of_rank = [&](std::size_t r) {
      return static_cast<T*>(const_cast<void*>(group_.pointers_[r]));
    };
    for (std::size_t i = begin; i < end; ++i) {
      T result = of_rank(0)[i];
      for (std::size_t r = 1; r < ranks; ++r) {
        const T value = of_rank(r)[i];
        if (op == ReduceOp::sum) result += value;
        if (op == ReduceOp::max) result = std::max(result, value);
        if (op == ReduceOp::min) result = std::min(result, value);
      }
      for (std::size_t r = 0; r < ranks; ++r) of_rank(r)[i] = result;
    }
    barrier();
  }

  ThreadGroup& group_;
  int rank_;
};

}  // namespace

void run_as_threads(int ranks, const std::function<void(Communicator&)>& body) {
  ThreadGroup group(ranks);
  std::mutex mutex;
  std::exception_ptr first_error;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadCommunicator communicator(group, rank);
      try {
        body(communicator);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!first_error) first_error = std::current_exception();
        group.fail();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace scone
