#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/bf16.h"

namespace scone {

enum class ReduceOp { sum, max, min };

/// A collective under way. Its buffers stay untouched by the caller until done() was true or wait()
/// has returned. Destroying one that is not done waits for it.
class PendingCollective {
 public:
  virtual ~PendingCollective() = default;
  /// Makes what progress there is, without blocking.
  virtual bool done() = 0;
  virtual void wait() = 0;
};

/// A group of ranks and its collectives. Every method but rank(), size(), describe(), name(),
/// members(), on_device() and cancel() is collective over the group and blocks until this rank's
/// part is done (start_*: is begun); all ranks call the same methods in the same order. Sums are
/// taken in an order that depends on the group's size and the number of elements alone, so a
/// repeated run is bit-identical, and the same on every rank. One thread at a time uses an object;
/// objects may be used by different threads at once. Implementations: `self` (one rank), `threads`
/// (ranks as threads of one process, for tests), `mpi`, and for device memory those of
/// parallel/cuda. Errors throw std::runtime_error that names the collective, the group and the
/// rank.
///
/// The tensor collectives are all_reduce, reduce_scatter and all_gather of floats and of Bf16, and
/// every start_*. Where on_device() they take device memory, and come after the work that the
/// compute stream was given before; work given to it later comes after them (after wait(), or
/// done() that was true, of a start_*). They may return before the device has done them. All other
/// collectives are of host memory always.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string describe() const = 0;
  virtual const std::string& name() const = 0;       // "world", "main tensor-parallel", ..
  virtual std::span<const int> members() const = 0;  // their ranks in the world, by rank here
  /// Whether the tensor collectives take device memory. split() gives groups of the same kind.
  virtual bool on_device() const { return false; }

  /// The ranks that give the same color form a new group, in the order of their ranks here. It has
  /// messages of its own, so that another thread may use it. name: for messages.
  virtual std::unique_ptr<Communicator> split(int color, const std::string& name) = 0;
  /// The same, on host memory also where on_device(): for threads that have nothing to do with a
  /// device, and without the device's resources.
  virtual std::unique_ptr<Communicator> split_on_host(int color, const std::string& name) {
    return split(color, name);
  }
  /// From any thread, without the others: all_to_all and all_gather of bytes that wait on this
  /// object, now or later, throw. For a thread that must end although another rank has failed.
  virtual void cancel() = 0;

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
  /// values: size() consecutive slices, counts[r] elements for rank r. slice: [counts[rank()]], the
  /// sum over ranks (in rank order) of their values' slice of this rank. Does not alias values.
  virtual void reduce_scatter(std::span<const float> values, std::span<const std::int64_t> counts,
                              std::span<float> slice) = 0;
  /// In place: slice r of values is taken from rank r. counts as in reduce_scatter.
  virtual void all_gather(std::span<float> values, std::span<const std::int64_t> counts) = 0;

  /// The same of Bf16, by way of floats: sums are those of the float collectives, rounded once at
  /// the end; a gathered signalling NaN may become a quiet one.
  virtual void all_reduce_sum(std::span<Bf16> values);
  virtual void reduce_scatter(std::span<const Bf16> values, std::span<const std::int64_t> counts,
                              std::span<Bf16> slice);
  virtual void all_gather(std::span<Bf16> values, std::span<const std::int64_t> counts);

  // The same, begun and not yet done: several may be under way, also of several groups. Where a
  // group has no such thing they are done when they return.
  virtual std::unique_ptr<PendingCollective> start_all_reduce_sum(std::span<float> values) = 0;
  virtual std::unique_ptr<PendingCollective> start_reduce_scatter(
      std::span<const float> values, std::span<const std::int64_t> counts,
      std::span<float> slice) = 0;
  /// send_counts and receive_counts are copied.
  virtual std::unique_ptr<PendingCollective> start_all_to_all(
      std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
      std::span<std::byte> receive, std::span<const std::int64_t> receive_counts,
      std::size_t element_bytes) = 0;

  // Conveniences over the above.
  double all_reduce_value(double value, ReduceOp op);
  std::int64_t all_reduce_value(std::int64_t value, ReduceOp op);
  std::string broadcast_string(const std::string& text, int root);
  /// How many elements each rank will send to this one, given how many this one sends to each.
  std::vector<std::int64_t> exchange_counts(std::span<const std::int64_t> send_counts);

 private:
  std::vector<float> floats_, float_slice_;  // what the Bf16 collectives are done by
};

/// A group of this process alone.
std::unique_ptr<Communicator> make_self_communicator();

/// All ranks of MPI_COMM_WORLD (duplicated). MPI must be initialised and not yet finalised, and be
/// when the object goes. In a build without MPI (SCONE_HAS_MPI undefined) InputError.
std::unique_ptr<Communicator> make_mpi_communicator();

/// A process's place among those of its node: which of them, and how many there are.
struct NodePlace {
  int rank, size;
};
/// This rank's, of MPI_COMM_WORLD. Collective over it; MPI as for make_mpi_communicator. 0 of 1 in
/// a build without MPI.
NodePlace mpi_node_place();

/// Runs body(communicator) on `ranks` threads of this process, which form one group; returns when
/// all are done. The first exception of a rank ends the collectives of the others and is rethrown.
void run_as_threads(int ranks, const std::function<void(Communicator&)>& body);

}  // namespace scone
