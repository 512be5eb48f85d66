#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace scone {

/// How a tensor is cut over the ranks of a tensor-parallel group: `axis` consists of `sections`
/// equal sections, and each section is cut into one slice a rank; a rank's shard is its slice of
/// every section, in order. (q | k | v is one axis of three sections.) Where the ranks do not
/// divide an axis of one section its extent is rounded up: the last ranks' shards end in padding.
struct Sharding {
  int axis = -1;  // -1: every rank holds the whole tensor
  int sections = 1;
};

/// One rank's place in a group.
struct Part {
  int index = 0;
  int count = 1;
};

/// Shape of a rank's shard, padding included: the same on every rank.
std::vector<std::int64_t> shard_shape(const std::vector<std::int64_t>& global_shape,
                                      const Sharding& sharding, int parts);

/// Calls visit(global, local, count) for each run of elements that is contiguous in the row-major
/// global tensor and in the part's shard, at those offsets, in order of both. Leaves out padding.
void for_each_run(
    const std::vector<std::int64_t>& global_shape, const Sharding& sharding, const Part& part,
    const std::function<void(std::int64_t global, std::int64_t local, std::int64_t count)>& visit);

/// The part's slice of `count` things cut into near-equal contiguous slices.
struct Slice {
  std::int64_t begin = 0, count = 0;
};
/// Slices of ceil(count / parts), rounded up to `multiple`; the last may be short or empty.
Slice slice_of(std::int64_t count, const Part& part, std::int64_t multiple = 1);
/// The counts of all slices, by part.
std::vector<std::int64_t> slice_counts(std::int64_t count, int parts, std::int64_t multiple = 1);

}  // namespace scone
