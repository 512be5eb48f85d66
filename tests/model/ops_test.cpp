#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "model/ops/cpu/vector_math.h"
#include "model/parameter.h"
#include "op_cases.h"

namespace scone {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

class OpTest : public ::testing::TestWithParam<OpCase> {};

TEST_P(OpTest, AgreesWithTheDoubleReferenceAndItsDifferences) {
  const OpCase& op = GetParam();
  Backend& backend = cpu_backend();
  std::vector<Tensor> x, dx;
  std::vector<Doubles> exact;
  for (const Shape& shape : op.inputs) {
    x.push_back(Tensor::zeros(shape));
    dx.push_back(Tensor::zeros(shape));
    counter_normal(7, op.name + std::to_string(x.size()), 0, x.back().span<float>());
    exact.emplace_back(x.back().span<float>().begin(), x.back().span<float>().end());
  }
  const Tensor y = Tensor::zeros(op.output), dy = Tensor::zeros(op.output);
  counter_normal(8, op.name, 0, dy.span<float>());
  op.forward(backend, x, y);
  const Doubles expected = op.reference(exact);
  ASSERT_EQ(expected.size(), y.span<float>().size());
  const double tolerance = kEpsilon * static_cast<double>(op.reduction);
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(y.span<float>()[i] - expected[i]) / (1 + std::abs(expected[i]));
    worst = std::max(worst, error);
  }
  EXPECT_LT(worst, tolerance);

  op.backward(backend, x, y, dy, dx);
  const auto weighted = [&] {
    const Doubles values = op.reference(exact);
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * dy.span<float>()[i];
    return sum;
  };
  std::mt19937_64 random(1);
  double worst_gradient = 0;
  for (std::size_t input = 0; input < x.size(); ++input) {
    const auto gradient = dx[input].span<float>();
    double largest = 0;
    for (const float value : gradient) largest = std::max(largest, std::abs(double{value}));
    EXPECT_GT(largest, 0.0) << "input " << input;
    for (int sample = 0; sample < 12; ++sample) {
      const std::size_t place = random() % gradient.size();
      const double saved = exact[input][place], step = 1e-5;
      exact[input][place] = saved + step;
      const double above = weighted();
      exact[input][place] = saved - step;
      const double difference = (above - weighted()) / (2 * step);
      exact[input][place] = saved;
      const double error = std::abs(gradient[place] - difference) / (1 + largest);
      worst_gradient = std::max(worst_gradient, error);
      EXPECT_LT(error, tolerance + 1e-8) << "input " << input << " element " << place;
    }
  }
  std::printf("%s: value %.1e, gradient %.1e, allowed %.1e\n", op.name.c_str(), worst,
              worst_gradient, tolerance);
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

TEST(Optimizer, AdamwFollowsItsFormula) {
  const Tensor w = Tensor::zeros({3}), g = Tensor::zeros({3}), m = Tensor::zeros({3}),
               v = Tensor::zeros({3});
  w.span<float>()[0] = 2;
  w.span<float>()[1] = -1;
  double value[3] = {2, -1, 0}, first[3] = {}, second[3] = {};
  for (int step = 1; step <= 3; ++step) {
    for (std::size_t i = 0; i < 3; ++i) {
      g.span<float>()[i] = static_cast<float>(i) - 0.5F * static_cast<float>(step);
      const double d = 0.5 * double{g.span<float>()[i]};
      first[i] = 0.9 * first[i] + 0.1 * d;
      second[i] = 0.95 * second[i] + 0.05 * d * d;
      value[i] -= 0.01 * 0.1 * value[i];
      value[i] -= 0.01 * first[i] / (1 - std::pow(0.9, step)) /
                  (std::sqrt(second[i] / (1 - std::pow(0.95, step))) + 1e-8);
    }
    cpu_backend().adamw(w, g, m, v, {0.01F, 0.9F, 0.95F, 1e-8F, 0.1F, step, 0.5F});
    for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(w.span<float>()[i], value[i], 32 * kEpsilon);
  }
}

TEST(Reductions, NormSumAndFiniteness) {
  const std::int64_t elements = 10001;  // several blocks
  const Tensor x = Tensor::zeros({elements});
  for (float& value : x.span<float>()) value = 0.5F;
  EXPECT_EQ(cpu_backend().squared_norm(x), 0.25 * 10001);
  EXPECT_EQ(cpu_backend().sum(x), 0.5 * 10001);
  EXPECT_TRUE(cpu_backend().all_finite(x));
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    x.span<float>()[9000] = bad;
    EXPECT_FALSE(cpu_backend().all_finite(x));
  }
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
