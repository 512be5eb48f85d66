#include "parallel/sharding.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace scone {
namespace {

using Shape = std::vector<std::int64_t>;

std::int64_t elements_of(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

/// Where global element `index` must lie: its part and its place in that part's shard, from the
/// indices on each axis.
struct Place {
  int part;
  std::int64_t local;
};
Place place_of(std::int64_t index, const Shape& shape, const Sharding& sharding, int parts) {
  Shape at(shape.size()), local_shape = shape;
  for (std::size_t axis = shape.size(); axis-- > 0; index /= shape[axis])
    at[axis] = index % shape[axis];
  int part = 0;
  if (sharding.axis >= 0) {
    const auto axis = static_cast<std::size_t>(sharding.axis);
    const std::int64_t section = shape[axis] / sharding.sections;
    const std::int64_t extent = (section + parts - 1) / parts;
    const std::int64_t in_section = at[axis] % section;
    part = static_cast<int>(in_section / extent);
    at[axis] = at[axis] / section * extent + in_section % extent;
    local_shape[axis] = extent * sharding.sections;
  }
  std::int64_t local = 0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    local = local * local_shape[axis] + at[axis];
  return {part, local};
}

void check_runs(const Shape& shape, const Sharding& sharding, int parts) {
  const std::string what =
      fmt::format("axes {}, axis {}, sections {}, {} parts, extent {}", shape.size(), sharding.axis,
                  sharding.sections, parts, shape[0]);
  const Shape local_shape = shard_shape(shape, sharding, parts);
  const std::int64_t elements = elements_of(shape), local_elements = elements_of(local_shape);
  std::vector<int> seen(static_cast<std::size_t>(elements), 0);
  for (int part = 0; part < parts; ++part) {
    std::vector<int> filled(static_cast<std::size_t>(local_elements), 0);
    std::int64_t global_end = 0, local_end = 0;
    for_each_run(shape, sharding, {part, parts},
                 [&](std::int64_t global, std::int64_t local, std::int64_t count) {
                   EXPECT_GE(global, global_end) << what;
                   EXPECT_GE(local, local_end) << what;
                   global_end = global + count;
                   local_end = local + count;
                   ASSERT_LE(global_end, elements) << what;
                   ASSERT_LE(local_end, local_elements) << what;
                   for (std::int64_t i = 0; i < count; ++i) {
                     ++seen[static_cast<std::size_t>(global + i)];
                     ++filled[static_cast<std::size_t>(local + i)];
                     const Place place = place_of(global + i, shape, sharding, parts);
                     if (sharding.axis >= 0) {
                       EXPECT_EQ(place.part, part) << what;
                     }
                     EXPECT_EQ(place.local, local + i) << what;
                   }
                 });
    EXPECT_LE(*std::max_element(filled.begin(), filled.end()), 1) << what;
  }
  const int copies = sharding.axis < 0 ? parts : 1;
  EXPECT_EQ(seen, std::vector<int>(seen.size(), copies)) << what;
}

TEST(Sharding, RunsOfAllPartsCoverTheTensorOnce) {
  int checked = 0;
  for (const int parts : {1, 2, 3, 4, 5, 8}) {
    for (const std::int64_t extent : {1, 2, 3, 7, 12, 24, 25}) {
      const std::vector<Shape> shapes = {{extent},       {extent, 3},    {4, extent},
                                         {extent, 2, 3}, {3, extent, 2}, {2, 3, extent}};
      const int axes[] = {0, 0, 1, 0, 1, 2};
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        check_runs(shapes[i], {}, parts);
        check_runs(shapes[i], {.axis = axes[i]}, parts);
        checked += 2;
        if (extent % (3 * parts) != 0) continue;
        check_runs(shapes[i], {.axis = axes[i], .sections = 3}, parts);
        ++checked;
      }
    }
  }
  EXPECT_GT(checked, 500);
}

TEST(Sharding, ShardShapes) {
  EXPECT_EQ(shard_shape({17, 4}, {}, 3), (Shape{17, 4}));
  EXPECT_EQ(shard_shape({17, 4}, {.axis = 0}, 3), (Shape{6, 4}));
  EXPECT_EQ(shard_shape({17, 4}, {.axis = 1}, 2), (Shape{17, 2}));
  EXPECT_EQ(shard_shape({18, 4}, {.axis = 0, .sections = 3}, 2), (Shape{9, 4}));
  EXPECT_EQ(shard_shape({2}, {.axis = 0}, 8), (Shape{1}));
  // The slices of sections must be equal: padding would stand amid the axis.
  EXPECT_THROW(shard_shape({17}, {.axis = 0, .sections = 3}, 1), std::logic_error);
  EXPECT_THROW(shard_shape({15}, {.axis = 0, .sections = 3}, 2), std::logic_error);
}

TEST(Sharding, PartsBeyondTheExtentHoldNothing) {
  int runs = 0;
  for_each_run({2, 3}, {.axis = 0}, {5, 8},
               [&](std::int64_t, std::int64_t, std::int64_t) { ++runs; });
  EXPECT_EQ(runs, 0);
}

TEST(Sharding, SlicesAreConsecutiveAligned) {
  for (const std::int64_t multiple : {1, 4, 16}) {
    for (std::int64_t count = 0; count < 100; ++count) {
      for (int parts = 1; parts <= 9; ++parts) {
        const std::vector<std::int64_t> counts = slice_counts(count, parts, multiple);
        ASSERT_EQ(counts.size(), static_cast<std::size_t>(parts));
        std::int64_t end = 0;
        for (int part = 0; part < parts; ++part) {
          const Slice slice = slice_of(count, {part, parts}, multiple);
          EXPECT_EQ(slice.begin, end);
          EXPECT_EQ(slice.count, counts[static_cast<std::size_t>(part)]);
          if (slice.count > 0) {
            EXPECT_EQ(slice.begin % multiple, 0);
          }
          // Never more than an even share, rounded up.
          EXPECT_LE(slice.count,
                    ((count + parts - 1) / parts + multiple - 1) / multiple * multiple);
          EXPECT_GE(slice.count, 0);
          end += slice.count;
        }
        EXPECT_EQ(end, count);
      }
    }
  }
}

}  // namespace
}  // namespace scone
