// The loss with the classes cut over ranks, against the whole operation and doubles.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "model/ops/ops.h"
#include "model/parameter.h"
#include "parallel/sharding.h"
#include "worst_error.h"

namespace scone {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr std::int64_t kRows = 67;

struct Case {
  std::int64_t classes;
  int parts;
  float spread;  // of the logits
};

Tensor targets_of(std::int64_t classes) {
  const Tensor targets = Tensor::zeros({kRows}, DType::int32);
  const auto values = targets.span<std::int32_t>();
  for (std::int64_t i = 0; i < kRows; ++i)
    values[static_cast<std::size_t>(i)] =
        i % 5 == 3 ? -1 : static_cast<std::int32_t>((i * 7) % classes);
  return targets;
}

Tensor copy_of(const Tensor& tensor) {
  const Tensor copy = Tensor::zeros(tensor.shape());
  cpu_backend().copy(tensor, copy);
  return copy;
}

/// The part's columns, with what may stand in padding behind them.
Tensor columns_of(const Tensor& logits, const Slice& own, std::int64_t extent) {
  const Tensor part = Tensor::zeros({kRows, extent});
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t j = 0; j < extent; ++j)
      part.data<float>()[i * extent + j] =
          j < own.count ? logits.data<float>()[i * logits.dim(1) + own.begin + j] : 1000.0F;
  }
  return part;
}

/// Losses; logits become their gradients.
Tensor in_parts(const Tensor& logits, const Tensor& targets, int parts, bool with_gradient,
                float scale) {
  const std::int64_t classes = logits.dim(1);
  const std::int64_t extent = shard_shape({classes}, {.axis = 0}, parts)[0];
  const Tensor all = Tensor::zeros({parts, kRows, 3});
  std::vector<Tensor> shards;
  for (int part = 0; part < parts; ++part) {
    const Slice own = slice_of(classes, {part, parts});
    shards.push_back(columns_of(logits, own, extent));
    cpu_backend().cross_entropy_part(shards.back(), targets, own.begin, own.count,
                                     all.rows(part, 1).view({kRows, 3}), kRows);
  }
  Tensor first;
  for (int part = 0; part < parts; ++part) {
    const Slice own = slice_of(classes, {part, parts});
    const Tensor& shard = shards[static_cast<std::size_t>(part)];
    const Tensor before = copy_of(shard);
    const Tensor losses = Tensor::zeros({kRows});
    for (float& loss : losses.span<float>()) loss = -1;
    cpu_backend().cross_entropy_join(shard, targets, own.begin, own.count, all, parts, losses,
                                     with_gradient, scale, kRows);
    if (part == 0) first = losses;
    EXPECT_TRUE(std::ranges::equal(losses.span<float>(), first.span<float>()))
        << "ranks disagree about the loss";
    if (!with_gradient) {
      EXPECT_TRUE(std::ranges::equal(shard.span<float>(), before.span<float>()));
      continue;
    }
    for (std::int64_t i = 0; i < kRows; ++i) {
      const float* row = shard.data<float>() + i * extent;
      std::copy_n(row, own.count, logits.data<float>() + i * classes + own.begin);
      for (std::int64_t j = own.count; j < extent; ++j) EXPECT_EQ(row[j], 0.0F) << "padding";
    }
  }
  return first;
}

TEST(ShardedCrossEntropy, AgreesWithTheWholeAndWithDoubles) {
  const Case cases[] = {{29, 1, 1}, {29, 2, 1},  {29, 3, 1},   {30, 3, 1},
                        {9, 8, 1},  {29, 3, 30}, {1003, 4, 1}, {1, 2, 1}};
  for (const auto& [classes, parts, spread] : cases) {
    SCOPED_TRACE(fmt::format("{} classes in {} parts", classes, parts));
    const float scale = 0.375F;
    const Tensor logits = Tensor::zeros({kRows, classes}), targets = targets_of(classes);
    counter_normal(3, "logits", 0, logits.span<float>());
    for (float& logit : logits.span<float>()) logit = spread * logit - 5;
    const Tensor whole = copy_of(logits), cut = copy_of(logits);
    const Tensor whole_losses = Tensor::zeros({kRows});
    cpu_backend().cross_entropy(whole, targets, classes, whole_losses, true, scale, kRows);
    const Tensor without = in_parts(cut, targets, parts, false, scale);
    const Tensor losses = in_parts(cut, targets, parts, true, scale);
    EXPECT_TRUE(std::ranges::equal(losses.span<float>(), without.span<float>()));

    // Rounding of the logits' differences, which exp makes relative, and of the sum.
    const double tolerance = kEpsilon * (8 * spread + 16 + std::sqrt(static_cast<double>(classes)));
    double worst = 0, worst_gradient = 0;
    for (std::int64_t i = 0; i < kRows; ++i) {
      const float* row = logits.data<float>() + i * classes;
      const std::int32_t target = targets.data<std::int32_t>()[i];
      const double largest = *std::max_element(row, row + classes);
      double sum = 0;
      for (std::int64_t j = 0; j < classes; ++j) sum += std::exp(row[j] - largest);
      const double loss = target < 0 ? 0 : std::log(sum) + largest - row[target];
      const double found = losses.data<float>()[i];
      worst = worse(worst, std::abs(found - loss) / (1 + std::abs(largest) + loss));
      EXPECT_NEAR(found, whole_losses.data<float>()[i],
                  2 * tolerance * (1 + std::abs(largest) + loss));
      for (std::int64_t j = 0; j < classes; ++j) {
        const double probability = std::exp(row[j] - largest) / sum;
        const double gradient = target < 0 ? 0 : scale * (probability - (j == target ? 1 : 0));
        const double own = cut.data<float>()[i * classes + j];
        worst_gradient = worse(worst_gradient, std::abs(own - gradient));
        EXPECT_NEAR(own, whole.data<float>()[i * classes + j], 2 * tolerance);
      }
    }
    std::printf("%lld classes in %d parts: loss %.1e, gradient %.1e, allowed %.1e\n",
                static_cast<long long>(classes), parts, worst, worst_gradient, tolerance);
    EXPECT_LT(worst, tolerance);
    EXPECT_LT(worst_gradient, tolerance);
  }
}

TEST(ShardedCrossEntropy, StatisticsOfAPart) {
  const Tensor logits = Tensor::zeros({2, 3}), targets = Tensor::zeros({2}, DType::int32);
  const Tensor statistics = Tensor::zeros({2, 3});
  const float values[] = {1, 3, 100, -2, -2, 100};
  std::ranges::copy(values, logits.span<float>().begin());
  targets.span<std::int32_t>()[0] = 5;  // the first of this part
  targets.span<std::int32_t>()[1] = 7;  // another part's: column 2 is padding
  const float* found = statistics.data<float>();
  cpu_backend().cross_entropy_part(logits, targets, 5, 2, statistics, 2);
  EXPECT_EQ(found[0], 3);
  EXPECT_NEAR(found[1], 1 + std::exp(-2.0), 4 * kEpsilon);
  EXPECT_EQ(found[2], 1);
  EXPECT_EQ(found[3], -2);
  EXPECT_EQ(found[4], 2);
  EXPECT_EQ(found[5], 0);
  cpu_backend().cross_entropy_part(logits, targets, 9, 0, statistics, 2);
  for (int row = 0; row < 2; ++row) {
    EXPECT_EQ(found[3 * row], std::numeric_limits<float>::lowest());
    EXPECT_EQ(found[3 * row + 1], 0);
    EXPECT_EQ(found[3 * row + 2], 0);
  }
}

}  // namespace
}  // namespace scone
