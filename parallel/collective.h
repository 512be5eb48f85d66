#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace scone {

// What the implementations of Communicator share.

/// This process's (thread's) rank in the world.
int world_rank(const Communicator& group);

/// `main data-parallel (ranks 1, 3, 5, 7)`; of long groups the first 16 and their number.
std::string describe_group(const Communicator& group);

/// Throws std::runtime_error(`rank 3: all_to_all of main data-parallel (ranks 1, 3): what`).
[[noreturn]] void fail_collective(const Communicator& group, const char* collective,
                                  const std::string& what);

/// Throws as fail_collective where color is negative, which MPI_Comm_split cannot take.
void check_color(const Communicator& group, int color);
/// Throws as fail_collective where root is no rank of the group.
void check_root(const Communicator& group, int root);

/// Throws as fail_collective where counts are not one a rank, >= 0, that add up to `elements`.
/// what: "values", "send" or "receive", for the message.
void check_counts(const Communicator& group, const char* collective, const char* what,
                  std::span<const std::int64_t> counts, std::size_t elements);

/// The same for the two sides of an all_to_all, whose buffers are given in bytes.
void check_exchange(const Communicator& group, const char* collective,
                    std::span<const std::byte> send, std::span<const std::int64_t> send_counts,
                    std::span<const std::byte> receive,
                    std::span<const std::int64_t> receive_counts, std::size_t element_bytes);

/// The same for a reduce_scatter of `elements` to slices of which this rank's has slice_elements.
void check_slices(const Communicator& group, const char* collective, std::size_t elements,
                  std::span<const std::int64_t> counts, std::size_t slice_elements);

/// A piece of all slices of a collective at once, so that it has few elements over all ranks:
/// counts[r] elements from begins[r] on, of all the slices' elements, are of rank r's slice.
struct SlicePiece {
  std::vector<std::int64_t> counts;
  std::vector<std::size_t> begins;
  std::size_t elements = 0;  // of all ranks
};

/// Slices of counts[r] elements in pieces of about piece_elements (at least one element a rank).
/// The same on every rank; together they are all elements, slice by slice in order.
std::vector<SlicePiece> slice_pieces(std::span<const std::int64_t> counts,
                                     std::size_t piece_elements);

/// Of a collective that was done when it was started.
class DoneCollective final : public PendingCollective {
 public:
  bool done() override { return true; }
  void wait() override {}
};

}  // namespace scone
