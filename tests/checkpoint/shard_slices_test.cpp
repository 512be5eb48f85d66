#include "checkpoint/shard_slices.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>

namespace scone {
namespace {

/// Elements of a shard, each with its global index + 1 as value; padding -1.
Tensor shard_of(const ParameterSpec& spec, const Part& part) {
  const Tensor shard = Tensor::zeros(shard_shape(spec.shape, spec.sharding, part.count));
  std::ranges::fill(shard.span<float>(), -1.0F);
  for_each_run(spec.shape, spec.sharding, part,
               [&](std::int64_t global, std::int64_t local, std::int64_t count) {
                 for (std::int64_t i = 0; i < count; ++i)
                   shard.data<float>()[local + i] = static_cast<float>(global + i + 1);
               });
  return shard.view({shard.elements()});
}

/// Cuts at random places, ends included; some pieces are empty.
std::vector<std::int64_t> random_cuts(std::mt19937_64& random, std::int64_t end) {
  std::vector<std::int64_t> cuts = {0, end};
  const auto pieces = random() % 6;
  for (std::uint64_t i = 0; i < pieces; ++i)
    cuts.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end + 1)));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

/// Marks the elements of a box and checks their values.
void mark(const TensorSlice& slice, const ParameterSpec& spec, std::vector<int>& seen) {
  ASSERT_EQ(slice.global_shape, spec.shape);
  ASSERT_EQ(slice.begin.size(), spec.shape.size());
  ASSERT_EQ(slice.values.shape().size(), spec.shape.size());
  const std::int64_t columns = spec.shape.size() == 2 ? spec.shape[1] : 1;
  const std::int64_t width = spec.shape.size() == 2 ? slice.values.dim(1) : 1;
  const std::int64_t first_column = spec.shape.size() == 2 ? slice.begin[1] : 0;
  EXPECT_GT(slice.values.elements(), 0);
  for (std::size_t axis = 0; axis < spec.shape.size(); ++axis) {
    ASSERT_GE(slice.begin[axis], 0);
    ASSERT_LE(slice.begin[axis] + slice.values.dim(axis), spec.shape[axis]);
  }
  for (std::int64_t i = 0; i < slice.values.elements(); ++i) {
    const std::int64_t global = (slice.begin[0] + i / width) * columns + first_column + i % width;
    EXPECT_EQ(slice.values.data<float>()[i], static_cast<float>(global + 1));
    ++seen[static_cast<std::size_t>(global)];
  }
}

void check_spec(const ParameterSpec& spec, int parts, std::mt19937_64& random) {
  SCOPED_TRACE(fmt::format("{} axes, {} rows, axis {}, sections {}, {} parts", spec.shape.size(),
                           spec.shape[0], spec.sharding.axis, spec.sharding.sections, parts));
  std::int64_t elements = 1;
  for (const std::int64_t extent : spec.shape) elements *= extent;
  std::vector<int> seen(static_cast<std::size_t>(elements), 0);
  for (int part = 0; part < (spec.replicated() ? 1 : parts); ++part) {
    const Tensor shard = shard_of(spec, {part, parts});
    const std::vector<std::int64_t> cuts = random_cuts(random, shard.elements());
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      std::vector<TensorSlice> slices(1);  // is appended to
      append_slices("a/name", spec, {part, parts}, cuts[i],
                    shard.rows(cuts[i], cuts[i + 1] - cuts[i]), slices);
      EXPECT_LE(slices.size(), 1U + 3U * static_cast<std::size_t>(spec.sharding.sections));
      for (std::size_t s = 1; s < slices.size(); ++s) {
        EXPECT_EQ(slices[s].name, "a/name");
        mark(slices[s], spec, seen);
      }
    }
  }
  EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
}

TEST(TensorSlices, BoxesCoverEachElementOnce) {
  std::mt19937_64 random(4);
  for (int repeat = 0; repeat < 20; ++repeat) {
    for (const int parts : {1, 2, 3, 4, 8}) {
      const std::int64_t p = parts;
      const std::vector<ParameterSpec> specs = {
          {.name = "norm", .shape = {13}},
          {.name = "whole", .shape = {7, 5}},
          {.name = "position", .shape = {9, 4 * p}},
          {.name = "vocabulary", .shape = {17, 6}, .sharding = {.axis = 0}},  // padded
          {.name = "few", .shape = {3, 6}, .sharding = {.axis = 0}},  // parts without any row
          {.name = "column", .shape = {4 * p, 5}, .sharding = {.axis = 0}},
          {.name = "bias", .shape = {4 * p}, .sharding = {.axis = 0}},
          {.name = "padded bias", .shape = {4 * p + 1}, .sharding = {.axis = 0}},
          {.name = "qkv", .shape = {3 * 2 * p, 5}, .sharding = {.axis = 0, .sections = 3}},
          {.name = "qkv bias", .shape = {3 * 2 * p}, .sharding = {.axis = 0, .sections = 3}},
          {.name = "row", .shape = {5, 3 * p}, .sharding = {.axis = 1}},
          {.name = "narrow", .shape = {5, p}, .sharding = {.axis = 1}},
          {.name = "one", .shape = {1}},
      };
      for (const ParameterSpec& spec : specs) check_spec(spec, parts, random);
    }
  }
}

TEST(TensorSlices, SharesTheMemory) {
  const ParameterSpec spec{.name = "whole", .shape = {3, 4}};
  const Tensor values = Tensor::zeros({12});
  std::vector<TensorSlice> slices;
  append_slices("whole", spec, {}, 0, values, slices);
  ASSERT_EQ(slices.size(), 1U);
  slices[0].values.span<float>()[7] = 5;
  EXPECT_EQ(values.span<float>()[7], 5);
}

TEST(TensorSlices, RefusesWhatNoParameterIs) {
  std::vector<TensorSlice> slices;
  const Tensor values = Tensor::zeros({8});
  const auto append = [&](const Shape& shape, const Sharding& sharding) {
    append_slices("bad", {.name = "bad", .shape = shape, .sharding = sharding}, {0, 2}, 0, values,
                  slices);
  };
  EXPECT_THROW(append({2, 2, 2}, {}), std::logic_error);
  EXPECT_THROW(append({2, 7}, {.axis = 1}), std::logic_error);  // padded columns
  EXPECT_THROW(append({2, 6}, {.axis = 1, .sections = 3}), std::logic_error);
  EXPECT_TRUE(slices.empty());
}

}  // namespace
}  // namespace scone
