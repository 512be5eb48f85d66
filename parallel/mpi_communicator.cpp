#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "parallel/communicator.h"

namespace scone {
namespace {

// Open MPI's shared-memory collectives are several times faster on pieces of this size than on
// large messages.
constexpr std::size_t reduce_piece_bytes = 4u << 20;
constexpr std::size_t message_piece_bytes = 256u << 20;

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

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    check(MPI_Comm_dup(MPI_COMM_WORLD, &communicator_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(communicator_, &rank_);
    MPI_Comm_size(communicator_, &size_);
  }
  ~MpiCommunicator() override { MPI_Comm_free(&communicator_); }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string describe() const override { return fmt::format("MPI, {} ranks", size_); }
  void barrier() override { check(MPI_Barrier(communicator_), "barrier"); }
  void all_reduce(std::span<float> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<double> values, ReduceOp op) override { reduce(values, op); }
  void all_reduce(std::span<std::int64_t> values, ReduceOp op) override { reduce(values, op); }

  void broadcast(std::span<std::byte> bytes, int root) override {
    for (std::size_t begin = 0; begin < bytes.size(); begin += message_piece_bytes) {
      const std::size_t count = std::min(message_piece_bytes, bytes.size() - begin);
      check(MPI_Bcast(bytes.data() + begin, static_cast<int>(count), MPI_BYTE, root, communicator_),
            "broadcast");
    }
  }

  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) override {
    auto length = static_cast<std::int64_t>(bytes.size());
    std::vector<std::int64_t> lengths(static_cast<std::size_t>(size_));
    check(MPI_Allgather(&length, 1, MPI_INT64_T, lengths.data(), 1, MPI_INT64_T, communicator_),
          "all_gather");
    std::vector<std::vector<std::byte>> result(lengths.size());
    for (int root = 0; root < size_; ++root) {
      auto& piece = result[static_cast<std::size_t>(root)];
      if (root == rank_) piece.assign(bytes.begin(), bytes.end());
      piece.resize(static_cast<std::size_t>(lengths[static_cast<std::size_t>(root)]));
      broadcast(piece, root);
    }
    return result;
  }

  void all_to_all(std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
                  std::size_t element_bytes) override {
    requests_.clear();
    auto pieces = [&](std::size_t bytes, auto&& post) {
      for (std::size_t begin = 0; begin < bytes; begin += message_piece_bytes) {
        requests_.emplace_back();
        check(post(begin, static_cast<int>(std::min(message_piece_bytes, bytes - begin)),
                   &requests_.back()),
              "all_to_all");
      }
    };
    std::size_t receive_begin = 0, own_receive = 0;
    for (int peer = 0; peer < size_; ++peer) {
      const auto bytes =
          static_cast<std::size_t>(receive_counts[static_cast<std::size_t>(peer)]) * element_bytes;
      if (peer == rank_) {
        own_receive = receive_begin;
      } else {
        pieces(bytes, [&](std::size_t begin, int count, MPI_Request* request) {
          return MPI_Irecv(receive.data() + receive_begin + begin, count, MPI_BYTE, peer, 0,
                           communicator_, request);
        });
      }
      receive_begin += bytes;
    }
    std::size_t send_begin = 0;
    for (int peer = 0; peer < size_; ++peer) {
      const auto bytes =
          static_cast<std::size_t>(send_counts[static_cast<std::size_t>(peer)]) * element_bytes;
      if (peer == rank_) {
        if (bytes > 0) std::memcpy(receive.data() + own_receive, send.data() + send_begin, bytes);
      } else {
        pieces(bytes, [&](std::size_t begin, int count, MPI_Request* request) {
          return MPI_Isend(send.data() + send_begin + begin, count, MPI_BYTE, peer, 0,
                           communicator_, request);
        });
      }
      send_begin += bytes;
    }
    check(MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE),
          "all_to_all");
  }

 private:
  template <class T>
  void reduce(std::span<T> values, ReduceOp op) {
    constexpr std::size_t piece = reduce_piece_bytes / sizeof(T);
    for (std::size_t begin = 0; begin < values.size(); begin += piece) {
      const std::size_t count = std::min(piece, values.size() - begin);
      check(MPI_Allreduce(MPI_IN_PLACE, values.data() + begin, static_cast<int>(count),
                          mpi_type<T>(), mpi_op(op), communicator_),
            "all_reduce");
    }
  }

  void check(int code, const char* collective) const {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw std::runtime_error(fmt::format("rank {} of {}: {} failed: {}", rank_, size_, collective,
                                         std::string(text, static_cast<std::size_t>(length))));
  }

  MPI_Comm communicator_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::vector<MPI_Request> requests_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator() {
  return std::make_unique<MpiCommunicator>();
}

}  // namespace scone
