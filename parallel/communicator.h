#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace scone {

enum class ReduceOp { sum, max, min };

/// A group of ranks and its collectives. Every method but rank(), size(), describe() is collective
/// over the group and blocks until this rank's part is done; all ranks call the same methods in the
/// same order. Sums are taken in an order that depends on the group's size alone, so a repeated run
/// is bit-identical. Implementations: `self` (one rank), `threads` (ranks as threads of one
/// process, for tests), `mpi`. Errors throw std::runtime_error that names the collective and the
/// rank.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string describe() const = 0;

  virtual void barrier() = 0;
  /// Element-wise reduction over ranks, in place, the same result on every rank.
  virtual void all_reduce(std::span<float> values, ReduceOp op) = 0;
  virtual void all_reduce(std::span<double> values, ReduceOp op) = 0;
  virtual void all_reduce(std::span<std::int64_t> values, ReduceOp op) = 0;
  /// root's bytes to all; every rank passes the same size.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  /// Every rank's bytes, of any size a rank, by rank.
  virtual std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) = 0;
  /// send: size() consecutive pieces, send_counts[r] elements of element_bytes each to rank r;
  /// receive: likewise by source. receive_counts must equal what the sources send. 64-bit counts.
  virtual void all_to_all(std::span<const std::byte> send,
                          std::span<const std::int64_t> send_counts, std::span<std::byte> receive,
                          std::span<const std::int64_t> receive_counts,
                          std::size_t element_bytes) = 0;

  // Conveniences over the above.
  double all_reduce_value(double value, ReduceOp op);
  std::int64_t all_reduce_value(std::int64_t value, ReduceOp op);
  std::string broadcast_string(const std::string& text, int root);
  /// How many elements each rank will send to this one, given how many this one sends to each.
  std::vector<std::int64_t> exchange_counts(std::span<const std::int64_t> send_counts);
};

/// A group of this process alone.
std::unique_ptr<Communicator> make_self_communicator();

/// All ranks of MPI_COMM_WORLD (duplicated). MPI must be initialised and not yet finalised, and be
/// when the object goes.
std::unique_ptr<Communicator> make_mpi_communicator();

/// Runs body(communicator) on `ranks` threads of this process, which form one group; returns when
/// all are done. The first exception of a rank ends the collectives of the others and is rethrown.
void run_as_threads(int ranks, const std::function<void(Communicator&)>& body);

}  // namespace scone
