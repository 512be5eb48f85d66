#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <numeric>
#include <thread>
#include <utility>

#include "parallel/collective.h"
#include "parallel/communicator.h"
#include "parallel/mpi_messages.h"
#include "parallel/watchdog.h"

namespace scone {
namespace {

// Open MPI's shared-memory collectives are several times faster on pieces of this size than on
// large messages.
constexpr std::size_t reduce_piece_bytes = 4u << 20;
constexpr std::size_t broadcast_piece_bytes = 256u << 20;
// What a blocking reduce_scatter receives at once, over all sources.
constexpr std::size_t receive_buffer_bytes = 16u << 20;

template <class T>
MPI_Datatype mpi_type();
template <>
MPI_Datatype mpi_type<float>() {
  return MPI_FLOAT;
}
template <>
MPI_Datatype mpi_type<double>() {
  return MPI_DOUBLE;
}
template <>
MPI_Datatype mpi_type<std::int64_t>() {
  return MPI_INT64_T;
}

MPI_Op mpi_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return MPI_SUM;
    case ReduceOp::max:
      return MPI_MAX;
    case ReduceOp::min:
      return MPI_MIN;
  }
  return MPI_OP_NULL;
}

/// A group's messages as a pending collective.
class PendingMessages final : public PendingCollective {
 public:
  template <class... Arguments>
  explicit PendingMessages(Arguments&&... arguments)
      : messages_(std::forward<Arguments>(arguments)...) {}
  MpiMessages& messages() { return messages_; }
  bool done() override { return messages_.done(); }
  void wait() override { messages_.wait(); }

 private:
  MpiMessages messages_;
};

/// MPI's own non-blocking reductions, one a piece.
class PendingReduction final : public PendingCollective {
 public:
  PendingReduction(const Communicator& group, MPI_Comm communicator, std::span<float> values)
      : group_(group) {
    constexpr std::size_t piece = reduce_piece_bytes / sizeof(float);
    for (std::size_t begin = 0; begin < values.size(); begin += piece) {
      MPI_Request request = MPI_REQUEST_NULL;
      check_mpi(group_, collective,
                MPI_Iallreduce(MPI_IN_PLACE, values.data() + begin,
                               static_cast<int>(std::min(piece, values.size() - begin)), MPI_FLOAT,
                               MPI_SUM, communicator, &request));
      requests_.push_back(request);
    }
  }
  ~PendingReduction() override {
    if (std::uncaught_exceptions() == 0) {
      wait();
      return;
    }
    // An error of this rank; the others take part, unless they fail too. What is still pending
    // then is leaked on purpose, since the job is about to be aborted.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    int all = 0;
    while (all == 0 && std::chrono::steady_clock::now() < deadline) {
      if (test(&all) != MPI_SUCCESS) return;
      if (all == 0) std::this_thread::sleep_for(std::chrono::microseconds(30));
    }
  }
  PendingReduction(const PendingReduction&) = delete;
  PendingReduction& operator=(const PendingReduction&) = delete;

  bool done() override {
    int all = 0;
    check_mpi(group_, collective, test(&all));
    return all != 0;
  }
  void wait() override {
    const CollectiveScope scope(group_, collective);
    check_mpi(
        group_, collective,
        MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE));
  }

 private:
  static constexpr const char* collective = "all_reduce";

  int test(int* all) {
    return MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), all,
                       MPI_STATUSES_IGNORE);
  }

  const Communicator& group_;
  std::vector<MPI_Request> requests_;
};

class MpiCommunicator final : public Communicator {
 public:
  /// Takes over `communicator`, or nothing where it throws.
  MpiCommunicator(MPI_Comm communicator, std::string name)
      : communicator_(communicator), name_(std::move(name)) {
    MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(communicator_, &rank_);
    MPI_Comm_size(communicator_, &size_);
    members_.resize(static_cast<std::size_t>(size_));
    std::vector<int> ranks(members_.size());
    std::iota(ranks.begin(), ranks.end(), 0);
    MPI_Group own = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
    MPI_Comm_group(communicator_, &own);
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_translate_ranks(own, size_, ranks.data(), world, members_.data());
    MPI_Group_free(&own);
    MPI_Group_free(&world);
  }
  /// Freeing may wait for the other ranks, which an error keeps away: then it is left.
  ~MpiCommunicator() override {
    if (!cancelled_ && std::uncaught_exceptions() == 0) MPI_Comm_free(&communicator_);
  }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string describe() const override { return fmt::format("MPI, {} ranks", size_); }
  const std::string& name() const override { return name_; }
  std::span<const int> members() const override { return members_; }

  std::unique_ptr<Communicator> split(int color, const std::string& name) override {
    check_color(*this, color);
    const CollectiveScope scope(*this, "split");
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(*this, "split", MPI_Comm_split(communicator_, color, rank_, &part));
    return std::make_unique<MpiCommunicator>(part, name);
  }

  void cancel() override { cancelled_ = true; }

  void barrier() override {
    const CollectiveScope scope(*this, "barrier");
    check_mpi(*this, "barrier", MPI_Barrier(communicator_));
  }

  void all_reduce(std::span<float> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<double> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<std::int64_t> values, ReduceOp op) override { reduce(values, op); }

  void broadcast(std::span<std::byte> bytes, int root) override {
    check_root(*this, root);
    const CollectiveScope scope(*this, "broadcast");
    for (std::size_t begin = 0; begin < bytes.size(); begin += broadcast_piece_bytes) {
      const std::size_t count = std::min(broadcast_piece_bytes, bytes.size() - begin);
      check_mpi(
          *this, "broadcast",
          MPI_Bcast(bytes.data() + begin, static_cast<int>(count), MPI_BYTE, root, communicator_));
    }
  }

  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    // Where the wait is cancelled messages may still come: they find their buffers here, leaked.
    struct Buffers {
      std::int64_t own_length = 0;
      std::vector<std::int64_t> lengths;
      std::vector<std::vector<std::byte>> pieces;
    };
    auto buffers = std::make_unique<Buffers>();
    buffers->own_length = static_cast<std::int64_t>(bytes.size());
    buffers->lengths.resize(members_.size());
    buffers->pieces.resize(members_.size());
    try {
      MpiMessages lengths(*this, communicator_, cancelled_, "all_gather");
      for_others([&](int peer, std::size_t r) {
        lengths.receive(peer, std::as_writable_bytes(std::span(&buffers->lengths[r], 1)));
      });
      for_others([&](int peer, std::size_t) {
        lengths.send(peer, std::as_bytes(std::span(&buffers->own_length, 1)));
      });
      lengths.wait();
      MpiMessages pieces(*this, communicator_, cancelled_, "all_gather");
      for_others([&](int peer, std::size_t r) {
        buffers->pieces[r].resize(static_cast<std::size_t>(buffers->lengths[r]));
        pieces.receive(peer, buffers->pieces[r]);
      });
      for_others([&](int peer, std::size_t) { pieces.send(peer, bytes); });
      pieces.wait();
    } catch (...) {
      static_cast<void>(buffers.release());
      throw;
    }
    buffers->pieces[static_cast<std::size_t>(rank_)].assign(bytes.begin(), bytes.end());
    return std::move(buffers->pieces);
  }

  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                  std::size_t element_bytes) override {
    start_all_to_all(send, send_counts, receive, receive_counts, element_bytes)->wait();
  }

  std::unique_ptr<PendingCollective> start_all_to_all(std::span<const std::byte> send,
                                                      std::span<const std::int64_t> send_counts,
                                                      std::span<std::byte> receive,
                                                      std::span<const std::int64_t> receive_counts,
                                                      std::size_t element_bytes) override {
    constexpr const char* collective = "all_to_all";
    check_exchange(*this, collective, send, send_counts, receive, receive_counts, element_bytes);
    const auto send_begins = begins(send_counts), receive_begins = begins(receive_counts);
    auto sent = [&](std::size_t r) {
      return send.subspan(send_begins[r] * element_bytes,
                          static_cast<std::size_t>(send_counts[r]) * element_bytes);
    };
    auto received = [&](std::size_t r) {
      return receive.subspan(receive_begins[r] * element_bytes,
                             static_cast<std::size_t>(receive_counts[r]) * element_bytes);
    };
    const auto own = static_cast<std::size_t>(rank_);
    if (send_counts[own] != receive_counts[own])
      fail_collective(*this, collective,
                      fmt::format("sends {} elements to itself, expects {}", send_counts[own],
                                  receive_counts[own]));
    auto pending = std::make_unique<PendingMessages>(*this, communicator_, cancelled_, collective);
    for_others([&](int peer, std::size_t r) { pending->messages().receive(peer, received(r)); });
    for_others([&](int peer, std::size_t r) { pending->messages().send(peer, sent(r)); });
    if (!sent(own).empty()) std::memcpy(received(own).data(), sent(own).data(), sent(own).size());
    return pending;
  }

  void reduce_scatter(std::span<const float> values, std::span<const std::int64_t> counts,
                      std::span<float> slice) override {
    check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
    if (values.empty()) return;
    const auto slice_begins = begins(counts);
    const auto widest = static_cast<std::size_t>(*std::max_element(counts.begin(), counts.end()));
    // Columns a round; the same on every rank.
    const std::size_t piece =
        receive_buffer_bytes / sizeof(float) / std::max<std::size_t>(1, members_.size() - 1);
    for (std::size_t begin = 0; begin < widest; begin += piece) {
      const Columns columns{begin, piece};
      auto sources = take_buffer();
      {
        MpiMessages messages(*this, communicator_, cancelled_, "reduce_scatter");
        exchange_slices(messages, values, counts, slice_begins, columns, sources);
        messages.wait();
      }
      sum_slices(values, counts, slice_begins, columns, sources, slice);
      give_back(std::move(sources));
    }
  }

  std::unique_ptr<PendingCollective> start_reduce_scatter(std::span<const float> values,
                                                          std::span<const std::int64_t> counts,
                                                          std::span<float> slice) override {
    check_slices(*this, "reduce_scatter", values.size(), counts, slice.size());
    return std::make_unique<PendingReduceScatter>(*this, values, counts, slice);
  }

  // Every rank's slice straight to all others: no slower than MPI's own, and without its limit of
  // 2^31 elements.
  void all_gather(std::span<float> values, std::span<const std::int64_t> counts) override {
    check_counts(*this, "all_gather", "values", counts, values.size());
    const auto slice_begins = begins(counts);
    auto slice = [&](std::size_t r) {
      return values.subspan(slice_begins[r], static_cast<std::size_t>(counts[r]));
    };
    MpiMessages messages(*this, communicator_, cancelled_, "all_gather");
    for_others(
        [&](int peer, std::size_t r) { messages.receive(peer, std::as_writable_bytes(slice(r))); });
    const auto own = std::as_bytes(slice(static_cast<std::size_t>(rank_)));
    for_others([&](int peer, std::size_t) { messages.send(peer, own); });
    messages.wait();
  }

  std::unique_ptr<PendingCollective> start_all_reduce_sum(std::span<float> values) override {
    return std::make_unique<PendingReduction>(*this, communicator_, values);
  }

 private:
  /// A part of every slice: elements begin .. begin + width of it, as far as it goes.
  struct Columns {
    std::size_t begin, width;
    std::size_t of(std::int64_t count) const {
      const auto elements = static_cast<std::size_t>(count);
      return std::min(width, elements - std::min(begin, elements));
    }
  };

  class PendingReduceScatter final : public PendingCollective {
   public:
    PendingReduceScatter(MpiCommunicator& group, std::span<const float> values,
                         std::span<const std::int64_t> counts, std::span<float> slice)
        : group_(group),
          values_(values),
          counts_(counts.begin(), counts.end()),
          begins_(group.begins(counts)),
          slice_(slice),
          sources_(group.take_buffer()),
          messages_(group, group.communicator_, group.cancelled_, "reduce_scatter") {
      group.exchange_slices(messages_, values_, counts_, begins_, whole, sources_);
    }
    ~PendingReduceScatter() override {
      if (std::uncaught_exceptions() == 0 && !group_.cancelled_) wait();
    }
    PendingReduceScatter(const PendingReduceScatter&) = delete;
    PendingReduceScatter& operator=(const PendingReduceScatter&) = delete;

    bool done() override {
      if (summed_) return true;
      if (!messages_.done()) return false;
      group_.sum_slices(values_, counts_, begins_, whole, sources_, slice_);
      group_.give_back(std::move(sources_));
      return summed_ = true;
    }
    void wait() override {
      messages_.wait();
      done();
    }

   private:
    static constexpr Columns whole{0, SIZE_MAX};
    MpiCommunicator& group_;
    std::span<const float> values_;
    std::vector<std::int64_t> counts_;
    std::vector<std::size_t> begins_;
    std::span<float> slice_;
    std::vector<float> sources_;
    MpiMessages messages_;  // goes first, as it uses the buffer
    bool summed_ = false;
  };

  /// f(peer, index) for every other rank, beginning with the next one, so that not all send to the
  /// same rank first.
  template <class F>
  void for_others(F&& f) const {
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ + step) % size_;
      f(peer, static_cast<std::size_t>(peer));
    }
  }

  std::vector<std::size_t> begins(std::span<const std::int64_t> counts) const {
    std::vector<std::size_t> result(counts.size());
    std::exclusive_scan(counts.begin(), counts.end(), result.begin(), std::size_t{0},
                        [](std::size_t a, auto b) { return a + static_cast<std::size_t>(b); });
    return result;
  }

  /// Every rank's columns of slice r to rank r. sources: those of this rank's slice from all
  /// others, by rank.
  void exchange_slices(MpiMessages& messages, std::span<const float> values,
                       std::span<const std::int64_t> counts,
                       std::span<const std::size_t> slice_begins, Columns columns,
                       std::vector<float>& sources) const {
    const auto own = static_cast<std::size_t>(rank_);
    const std::size_t width = columns.of(counts[own]);
    const std::size_t needed = width * (members_.size() - 1);
    if (sources.size() < needed) sources.resize(needed);
    for_others([&](int peer, std::size_t r) {
      const std::size_t place = r - (r > own ? 1 : 0);
      messages.receive(peer,
                       std::as_writable_bytes(std::span(sources).subspan(place * width, width)));
    });
    for_others([&](int peer, std::size_t r) {
      const std::size_t length = columns.of(counts[r]);
      if (length > 0)
        messages.send(peer, std::as_bytes(values.subspan(slice_begins[r] + columns.begin, length)));
    });
  }

  void sum_slices(std::span<const float> values, std::span<const std::int64_t> counts,
                  std::span<const std::size_t> slice_begins, Columns columns,
                  std::span<const float> sources, std::span<float> slice) const {
    const auto own = static_cast<std::size_t>(rank_);
    const std::size_t width = columns.of(counts[own]);
    if (width == 0) return;
    const float* own_values = values.data() + slice_begins[own] + columns.begin;
    auto of_rank = [&](std::size_t r) {
      return r == own ? own_values : sources.data() + (r - (r > own ? 1 : 0)) * width;
    };
    float* out = slice.data() + columns.begin;
    constexpr std::size_t block = 4096;  // stays in the cache over all ranks
    const auto blocks = static_cast<std::int64_t>((width + block - 1) / block);
#pragma omp parallel for if (blocks > 8)
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::size_t begin = static_cast<std::size_t>(b) * block;
      const std::size_t end = std::min(width, begin + block);
      std::copy(of_rank(0) + begin, of_rank(0) + end, out + begin);
      for (std::size_t r = 1; r < members_.size(); ++r) {
        const float* added = of_rank(r);
        for (std::size_t i = begin; i < end; ++i) out[i] += added[i];
      }
    }
  }

  std::vector<float> take_buffer() {
    if (buffers_.empty()) return {};
    auto buffer = std::move(buffers_.back());
    buffers_.pop_back();
    return buffer;
  }
  void give_back(std::vector<float> buffer) { buffers_.push_back(std::move(buffer)); }

  template <class T>
  void reduce(std::span<T> values, ReduceOp op) {
    const CollectiveScope scope(*this, "all_reduce");
    constexpr std::size_t piece = reduce_piece_bytes / sizeof(T);
    for (std::size_t begin = 0; begin < values.size(); begin += piece) {
      const std::size_t count = std::min(piece, values.size() - begin);
      check_mpi(*this, "all_reduce",
                MPI_Allreduce(MPI_IN_PLACE, values.data() + begin, static_cast<int>(count),
                              mpi_type<T>(), mpi_op(op), communicator_));
    }
  }

  MPI_Comm communicator_ = MPI_COMM_NULL;
  std::string name_;
  int rank_ = 0, size_ = 1;
  std::vector<int> members_;
  std::atomic<bool> cancelled_ = false;
  std::vector<std::vector<float>> buffers_;  // of reduce_scatters that are done
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator() {
  MPI_Comm world = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &world);  // its error handler aborts
  return std::make_unique<MpiCommunicator>(world, "world");
}

NodePlace mpi_node_place() {
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  NodePlace place{0, 1};
  MPI_Comm_rank(node, &place.rank);
  MPI_Comm_size(node, &place.size);
  MPI_Comm_free(&node);
  return place;
}

}  // namespace scone
