#include "op_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "model/parameter.h"
#include "worst_error.h"

namespace scone {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr double kBf16Epsilon = 0x1p-8;  // the largest relative error of one rounding

Tensor make(Backend& backend, const Shape& shape, DType dtype) {
  return Tensor::zeros(shape, dtype, backend.device());
}

/// A tensor of normal numbers, rounded to its type.
Tensor normal(Backend& backend, const Shape& shape, DType dtype, std::uint64_t seed,
              const std::string& stream) {
  const Tensor tensor = make(backend, shape, dtype);
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  counter_normal(seed, stream, 0, values);
  backend.upload(values, tensor);
  return tensor;
}

Doubles doubles_of(Backend& backend, const Tensor& tensor) {
  const std::vector<float> values = values_of(backend, tensor);
  return {values.begin(), values.end()};
}

/// Philox4x32-10 as Salmon et al. (SC 2011) write it.
using Words = std::array<std::uint32_t, 4>;
Words philox(Words counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    const auto high = [](std::uint64_t product) {
      return static_cast<std::uint32_t>(product >> 32);
    };
    const auto low = [](std::uint64_t product) { return static_cast<std::uint32_t>(product); };
    counter = {high(b) ^ counter[1] ^ key[0], low(b), high(a) ^ counter[3] ^ key[1], low(a)};
    key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
  }
  return counter;
}

}  // namespace

void check_op(const OpCase& op, Backend& backend, DType dtype) {
  std::vector<Tensor> x, dx;
  std::vector<Doubles> exact;
  for (const OpInput& input : op.inputs) {
    const DType of_value = input.role == OpRole::fp32 ? DType::fp32 : dtype;
    const DType of_gradient = input.role == OpRole::stream ? dtype : DType::fp32;
    x.push_back(normal(backend, input.shape, of_value, 7, op.name + std::to_string(x.size() + 1)));
    dx.push_back(make(backend, input.shape, of_gradient));
    exact.push_back(doubles_of(backend, x.back()));
  }
  const DType of_output = op.output.role == OpRole::fp32 ? DType::fp32 : dtype;
  const Tensor y = make(backend, op.output.shape, of_output);
  const Tensor dy = normal(backend, op.output.shape, of_output, 8, op.name);
  const Doubles output_gradient = doubles_of(backend, dy);
  op.forward(backend, x, y);
  const Doubles expected = op.reference(exact), found = doubles_of(backend, y);
  ASSERT_EQ(expected.size(), found.size());
  const double tolerance = kEpsilon * static_cast<double>(op.reduction) +
                           (dtype == DType::bf16 ? op.bf16_roundings * kBf16Epsilon : 0.0);
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(found[i] - expected[i]) / (1 + std::abs(expected[i]));
    worst = worse(worst, error);
  }
  EXPECT_LT(worst, tolerance);

  op.backward(backend, x, y, dy, dx);
  const auto weighted = [&] {
    const Doubles values = op.reference(exact);
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) sum += values[i] * output_gradient[i];
    return sum;
  };
  std::mt19937_64 random(1);
  double worst_gradient = 0;
  for (std::size_t input = 0; input < x.size(); ++input) {
    const Doubles gradient = doubles_of(backend, dx[input]);
    double largest = 0;
    for (const double value : gradient) largest = std::max(largest, std::abs(value));
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
      worst_gradient = worse(worst_gradient, error);
      EXPECT_LT(error, tolerance + 1e-8) << "input " << input << " element " << place;
    }
  }
  std::printf("%s %s: value %.1e, gradient %.1e, allowed %.1e\n", op.name.c_str(), name_of(dtype),
              worst, worst_gradient, tolerance);
}

void check_adamw(Backend& backend, DType dtype) {
  constexpr std::int64_t kElements = 5000, kState = 4000;
  // Aligned and not, long and of one element; what lies between is not touched.
  const std::vector<AdamwRange> ranges = {
      {0, 16, 1600, true}, {1603, 1616, 1, false}, {1700, 1621, 2011, true}, {4999, 3999, 1, true}};
  const AdamwTensors tensors{
      normal(backend, {kElements}, DType::fp32, 1, "values"), make(backend, {kState}, DType::fp32),
      make(backend, {kState}, DType::fp32), make(backend, {kState}, DType::fp32),
      dtype == DType::bf16 ? make(backend, {kElements}, dtype) : Tensor{}};
  Doubles value = doubles_of(backend, tensors.values), first(kState), second(kState);
  for (int step = 1; step <= 3; ++step) {
    const Tensor gradient =
        normal(backend, {kState}, DType::fp32, static_cast<std::uint64_t>(step), "gradients");
    backend.copy(gradient, tensors.gradients);
    const Doubles exact = doubles_of(backend, gradient);
    for (const AdamwRange& range : ranges) {
      for (std::int64_t i = 0; i < range.count; ++i) {
        const auto at = static_cast<std::size_t>(range.state_begin + i);
        double& w = value[static_cast<std::size_t>(range.value_begin + i)];
        const double d = 0.5 * exact[at];
        first[at] = 0.9 * first[at] + 0.1 * d;
        second[at] = 0.95 * second[at] + 0.05 * d * d;
        if (range.weight_decay) w -= 0.01 * 0.1 * w;
        w -= 0.01 * first[at] / (1 - std::pow(0.9, step)) /
             (std::sqrt(second[at] / (1 - std::pow(0.95, step))) + 1e-8);
      }
    }
    backend.adamw(tensors, ranges,
                  {.lr = 0.01F, .weight_decay = 0.1F, .step = step, .gradient_scale = 0.5F});
  }
  const Doubles found = doubles_of(backend, tensors.values);
  for (std::size_t i = 0; i < value.size(); ++i)
    ASSERT_NEAR(found[i], value[i], 64 * kEpsilon * (1 + std::abs(value[i]))) << i;
  if (tensors.working.empty()) return;
  const Doubles working = doubles_of(backend, tensors.working);
  std::vector<bool> touched(kElements, false);
  for (const AdamwRange& range : ranges)
    for (std::int64_t i = 0; i < range.count; ++i)
      touched[static_cast<std::size_t>(range.value_begin + i)] = true;
  for (std::size_t i = 0; i < value.size(); ++i) {
    const double expected = touched[i] ? found[i] : 0.0;
    ASSERT_NEAR(working[i], expected, kBf16Epsilon * std::abs(expected)) << i;
  }
}

void check_stochastic_rounding(Backend& backend) {
  ASSERT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::int64_t kElements = 5003;
  constexpr std::uint32_t kSeedLow = 0x89abcdef, kSeedHigh = 0x01234567;
  const auto zeros = [&] { return make(backend, {kElements}, DType::fp32); };
  const AdamwTensors tensors{normal(backend, {kElements}, DType::fp32, 4, "values"), zeros(),
                             zeros(), zeros(), make(backend, {kElements}, DType::bf16)};
  const std::vector<float> before = values_of(backend, tensors.values);
  // Without a gradient or a rate the values stay.
  const AdamwRange ranges[] = {{0, 0, 5, false}, {5, 5, 4200, true}, {4205, 4205, 798, false}};
  backend.adamw(
      tensors, ranges,
      {.step = 9, .stochastic_rounding = true, .seed = std::uint64_t{kSeedHigh} << 32 | kSeedLow});
  EXPECT_EQ(values_of(backend, tensors.values), before);
  const std::vector<float> copies = values_of(backend, tensors.working);
  int rounded_up = 0;
  for (std::uint32_t i = 0; i < kElements; ++i) {
    const std::uint32_t random = philox({i / 4, 0, 9, 0}, {kSeedLow, kSeedHigh})[i % 4] & 0xFFFF;
    const auto bits = std::bit_cast<std::uint32_t>(before[i]);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(copies[i]), (bits + random) & 0xFFFF0000U) << i;
    rounded_up += std::abs(copies[i]) > std::abs(before[i]) ? 1 : 0;
  }
  EXPECT_NEAR(rounded_up, kElements / 2, 4 * std::sqrt(kElements / 4.0));
}

void check_reductions(Backend& backend) {
  const std::int64_t sizes[] = {10001, 1, 0, 300000};
  std::vector<Tensor> parts;
  double elements = 0;
  for (const std::int64_t size : sizes) {
    parts.push_back(make(backend, {size}, DType::fp32));
    backend.upload(std::vector<float>(static_cast<std::size_t>(size), 0.5F), parts.back());
    EXPECT_EQ(backend.sum(parts.back()), 0.5 * static_cast<double>(size));
    elements += static_cast<double>(size);
  }
  EXPECT_EQ(backend.squared_norm(parts), 0.25 * elements);
  EXPECT_EQ(backend.squared_norm({}), 0.0);
  backend.upload(std::vector<float>{std::numeric_limits<float>::quiet_NaN()},
                 parts[3].rows(299999, 1));
  EXPECT_TRUE(std::isnan(backend.squared_norm(parts)));
}

void check_moves(Backend& backend, DType dtype) {
  constexpr std::int64_t kElements = 1027;
  std::vector<float> values(kElements);
  counter_normal(3, "moves", 0, values);
  const double rounding = dtype == DType::bf16 ? kBf16Epsilon : 0.0;
  const auto expect_values = [&](const Tensor& tensor) {
    const std::vector<float> found = values_of(backend, tensor);
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_NEAR(found[i], values[i], rounding * std::abs(values[i])) << i;
  };
  const Tensor plain = make(backend, {kElements}, DType::fp32),
               typed = make(backend, {kElements}, dtype), back = make(backend, {kElements}, dtype);
  backend.upload(values, plain);
  backend.upload(values, typed);
  expect_values(typed);
  backend.copy(plain, back);
  EXPECT_EQ(values_of(backend, back), values_of(backend, typed));  // rounded alike
  backend.zero(back.rows(1, 5));
  const std::vector<float> cleared = values_of(backend, back);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(cleared[i] == 0.0F, i >= 1 && i < 6);
  backend.copy(typed.rows(3, 1000), back.rows(11, 1000));
  EXPECT_EQ(values_of(backend, back.rows(11, 1000)), values_of(backend, typed.rows(3, 1000)));
  backend.copy(typed, plain);
  expect_values(plain);
}

}  // namespace scone
