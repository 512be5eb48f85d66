#include "parallel/sharding.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <stdexcept>

namespace scone {
namespace {

std::int64_t product(std::vector<std::int64_t>::const_iterator begin,
                     std::vector<std::int64_t>::const_iterator end) {
  return std::accumulate(begin, end, std::int64_t{1}, std::multiplies<>());
}

/// Extent of one rank's slice of one section.
std::int64_t slice_extent(std::int64_t extent, const Sharding& sharding, int parts) {
  if (sharding.sections < 1 || extent % sharding.sections != 0)
    throw std::logic_error("sharding: the sections do not divide the axis");
  const std::int64_t section = extent / sharding.sections;
  if (sharding.sections > 1 && section % parts != 0)
    throw std::logic_error("sharding: only an axis of one section can be padded");
  return (section + parts - 1) / parts;
}

}  // namespace

std::vector<std::int64_t> shard_shape(const std::vector<std::int64_t>& global_shape,
                                      const Sharding& sharding, int parts) {
  std::vector<std::int64_t> shape = global_shape;
  if (sharding.axis < 0) return shape;
  std::int64_t& extent = shape.at(static_cast<std::size_t>(sharding.axis));
  extent = slice_extent(extent, sharding, parts) * sharding.sections;
  return shape;
}

void for_each_run(
    const std::vector<std::int64_t>& global_shape, const Sharding& sharding, const Part& part,
    const std::function<void(std::int64_t global, std::int64_t local, std::int64_t count)>& visit) {
  if (sharding.axis < 0) {
    visit(0, 0, product(global_shape.begin(), global_shape.end()));
    return;
  }
  const auto axis = global_shape.begin() + sharding.axis;
  const std::int64_t outer = product(global_shape.begin(), axis);
  const std::int64_t inner = product(axis + 1, global_shape.end());
  const std::int64_t section = *axis / sharding.sections;
  const std::int64_t extent = slice_extent(*axis, sharding, part.count);
  const std::int64_t begin = extent * part.index;
  const std::int64_t used = std::clamp<std::int64_t>(section - begin, 0, extent);
  if (used == 0) return;
  for (std::int64_t row = 0; row < outer; ++row) {
    for (std::int64_t s = 0; s < sharding.sections; ++s)
      visit((row * *axis + s * section + begin) * inner,
            (row * extent * sharding.sections + s * extent) * inner, used * inner);
  }
}

Slice slice_of(std::int64_t count, const Part& part, std::int64_t multiple) {
  std::int64_t extent = (count + part.count - 1) / part.count;
  extent = (extent + multiple - 1) / multiple * multiple;
  const std::int64_t begin = std::min(count, extent * part.index);
  return {begin, std::min(count - begin, extent)};
}

std::vector<std::int64_t> slice_counts(std::int64_t count, int parts, std::int64_t multiple) {
  std::vector<std::int64_t> counts;
  for (int part = 0; part < parts; ++part)
    counts.push_back(slice_of(count, {part, parts}, multiple).count);
  return counts;
}

}  // namespace scone
