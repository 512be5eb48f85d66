#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <tuple>

#include "model/ops/cpu/vector_math.h"
#include "model/parameter.h"
#include "op_checks.h"
#include "worst_error.h"

namespace scone {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

constexpr DType kTypes[] = {DType::fp32, DType::bf16};

class OpTest : public ::testing::TestWithParam<std::tuple<OpCase, DType>> {};

TEST_P(OpTest, AgreesWithTheDoubleReferenceAndItsDifferences) {
  check_op(std::get<0>(GetParam()), cpu_backend(), std::get<1>(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Registry, OpTest,
                         ::testing::Combine(::testing::ValuesIn(op_cases()),
                                            ::testing::ValuesIn(kTypes)),
                         [](const auto& instance) {
                           return std::get<0>(instance.param).name + "_" +
                                  name_of(std::get<1>(instance.param));
                         });

TEST(VectorMath, ExpIsWithinAFewUlp) {
  double worst = 0;
  for (int i = -870000; i <= 880000; ++i) {
    const float x = static_cast<float>(i) * 1e-4F;
    const double expected = std::exp(double{x});
    worst = worse(worst, std::abs(HWY_NAMESPACE::fast_exp(x) - expected) / expected);
  }
  std::printf("largest relative error of exp: %.2f epsilon\n", worst / kEpsilon);
  EXPECT_LT(worst, 2 * kEpsilon);
  EXPECT_TRUE(std::isnan(HWY_NAMESPACE::fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Optimizer, AdamwFollowsItsFormula) {
  for (const DType dtype : kTypes) check_adamw(cpu_backend(), dtype);
}
TEST(Optimizer, RoundsAtRandomByPhilox) { check_stochastic_rounding(cpu_backend()); }
TEST(Reductions, NormAndSum) { check_reductions(cpu_backend()); }
TEST(Moves, UploadDownloadCopyZero) {
  for (const DType dtype : kTypes) check_moves(cpu_backend(), dtype);
}

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
