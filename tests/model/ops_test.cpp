#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "model/ops/cpu/vector_math.h"
#include "model/parameter.h"
#include "op_checks.h"

namespace scone {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

class OpTest : public ::testing::TestWithParam<OpCase> {};

TEST_P(OpTest, AgreesWithTheDoubleReferenceAndItsDifferences) {
  check_op(GetParam(), cpu_backend(), DType::fp32);
}

INSTANTIATE_TEST_SUITE_P(Registry, OpTest, ::testing::ValuesIn(op_cases()),
                         [](const auto& instance) { return instance.param.name; });

TEST(VectorMath, ExpIsWithinAFewUlp) {
  double worst = 0;
  for (int i = -870000; i <= 880000; ++i) {
    const float x = static_cast<float>(i) * 1e-4F;
    const double expected = std::exp(double{x});
    worst = std::max(worst, std::abs(fast_exp(x) - expected) / expected);
  }
  std::printf("largest relative error of exp: %.2f epsilon\n", worst / kEpsilon);
  EXPECT_LT(worst, 2 * kEpsilon);
  EXPECT_TRUE(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Optimizer, AdamwFollowsItsFormula) { check_adamw(cpu_backend(), DType::fp32); }
TEST(Reductions, NormAndSum) { check_reductions(cpu_backend()); }
TEST(Moves, UploadDownloadCopyZero) { check_moves(cpu_backend(), DType::fp32); }

TEST(CounterNormal, IsTheSameFromAnyIndexAndStandardNormal) {
  std::vector<float> all(100000), part(1001);
  counter_normal(5, "stream", 0, all);
  counter_normal(5, "stream", 4321, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 4321));
  double sum = 0, squares = 0;
  for (const float value : all) sum += value, squares += double{value} * value;
  const double n = static_cast<double>(all.size());
  EXPECT_NEAR(sum / n, 0, 4 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 4 * std::sqrt(2 / n));
  counter_normal(5, "other", 4321, part);
  EXPECT_NE(part[0], all[4321]);
}

}  // namespace
}  // namespace scone
