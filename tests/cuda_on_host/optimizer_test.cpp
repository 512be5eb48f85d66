#include "model/ops/cuda/optimizer.h"

#include <memory>

#include "attention_cases.h"
#include "parallel/bf16.h"

namespace scone::cuda {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Values, gradients and moments of `n` elements, with places to spare in front.
struct State {
  State(std::int64_t n, std::int64_t shift)
      : values(normal_values<float>(n + shift, 1)),
        gradients(normal_values<float>(n + shift, 2)),
        m(normal_values<float>(n + shift, 3, 0.1)),
        v(normal_values<float>(n + shift, 4, 0.1)) {
    for (float& square : v) square *= square;
  }
  std::vector<float> values, gradients, m, v;
};

void check_adamw(std::int64_t n, std::int64_t shift, const std::vector<AdamwRange>& ranges,
                 bool with_working, const std::string& what) {
  const State state(n, shift);
  AdamwStep step;
  step.lr = 0.01F;
  step.weight_decay = 0.1F;
  step.gradient_scale = 0.5F;
  step.step = 3;
  const DeviceArray<float> values(state.values), gradients(state.gradients), m(state.m), v(state.v);
  const DeviceArray<__nv_bfloat16> working(state.values.size());
  adamw({values.data() + shift, gradients.data() + shift, m.data() + shift, v.data() + shift,
         with_working ? working.data() + shift : nullptr},
        ranges, step, nullptr);
  Doubles w = doubles_of(state.values), first = doubles_of(state.m), second = doubles_of(state.v);
  std::vector<bool> touched(w.size());
  for (const AdamwRange& range : ranges) {
    for (std::int64_t i = 0; i < range.count; ++i) {
      const std::size_t value = at(shift + range.value_begin + i),
                        slot = at(shift + range.state_begin + i);
      const double d = 0.5 * double{state.gradients[slot]};
      first[slot] = 0.9 * first[slot] + 0.1 * d;
      second[slot] = 0.95 * second[slot] + 0.05 * d * d;
      if (range.weight_decay) w[value] -= 0.01 * 0.1 * w[value];
      w[value] -= 0.01 * first[slot] / (1 - std::pow(0.9, 3)) /
                  (std::sqrt(second[slot] / (1 - std::pow(0.95, 3))) + 1e-8);
      touched[value] = true;
    }
  }
  // The betas are rounded to float.
  EXPECT_LT(worst_error(values.doubles(), w, 1), tolerance<float>(32, 1)) << what;
  EXPECT_LT(worst_error(m.doubles(), first, 1), tolerance<float>(8, 1)) << what;
  EXPECT_LT(worst_error(v.doubles(), second, 1), tolerance<float>(8, 1)) << what;
  const std::vector<float> masters = values.values();
  const Doubles copies = working.doubles();
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (with_working && touched[i]) {
      ASSERT_EQ(copies[i], double{to_float(to_bf16(masters[i]))}) << what << ", " << i;
    } else {
      ASSERT_TRUE(std::isnan(copies[i])) << what << ", " << i << ": written outside the ranges";
      if (!touched[i]) {
        ASSERT_EQ(masters[i], state.values[i]);
      }
    }
  }
}

TEST(Adamw, UpdatesItsRangesAlone) {
  for (const bool with_working : {false, true}) {
    for (const std::int64_t shift : {0, 1}) {
      const std::string what = "shift " + std::to_string(shift);
      check_adamw(100, shift, {{0, 0, 100, true}}, with_working, what);
      check_adamw(100, shift, {{0, 8, 37, true}, {37, 47, 1, false}, {64, 0, 0, true}},
                  with_working, what + ", gaps");
      check_adamw(20000, shift, {{16, 0, 8192, true}, {8208, 8192, 8193, false}}, with_working,
                  what + ", several blocks");
    }
  }
}

TEST(Adamw, TakesMoreRangesThanALaunch) {
  std::vector<AdamwRange> ranges;
  for (std::int64_t i = 0; i < 2 * kMostAdamwRanges + 5; ++i) {
    ranges.push_back({i * 16, i * 16, i % 16, i % 3 == 0});
  }
  check_adamw(16 * static_cast<std::int64_t>(ranges.size()), 0, ranges, true, "many ranges");
  check_adamw(16, 0, {}, true, "no ranges");
}

/// The copies after a step without gradients, which leaves the masters as they are. Two ranges meet
/// at `cut`.
std::vector<float> rounded_at_random(const std::vector<float>& masters, std::uint64_t seed,
                                     std::int64_t step_number, std::int64_t cut) {
  const auto n = static_cast<std::int64_t>(masters.size());
  AdamwStep step;
  step.step = step_number;
  step.stochastic_rounding = true;
  step.seed = seed;
  const std::vector<float> zeros(masters.size());
  const DeviceArray<float> values(masters), gradients(zeros), m(zeros), v(zeros);
  const DeviceArray<__nv_bfloat16> working(masters.size());
  const std::vector<AdamwRange> ranges = {{0, 0, cut, false}, {cut, cut, n - cut, false}};
  adamw({values.data(), gradients.data(), m.data(), v.data(), working.data()}, ranges, step,
        nullptr);
  EXPECT_EQ(values.values(), masters);
  std::vector<float> result;
  for (const double copy : working.doubles()) result.push_back(static_cast<float>(copy));
  return result;
}

TEST(Adamw, RoundsAtRandomByTheIndexAlone) {
  constexpr std::size_t kCount = 40000;
  constexpr double kUnit = 1.0 / 128;  // of bf16 from 1 on
  for (const double share : {0.0, 0.25, 0.7}) {
    for (const double sign : {1.0, -1.0}) {
      const std::vector<float> masters(kCount, static_cast<float>(sign * (1 + share * kUnit)));
      const auto copies = rounded_at_random(masters, 5, 9, 16);
      double up = 0;
      for (const float copy : copies) {
        ASSERT_TRUE(copy == sign || copy == sign * (1 + kUnit)) << copy;
        up += copy == sign ? 0 : 1.0 / kCount;
      }
      EXPECT_NEAR(up, share, 4 * std::sqrt(share * (1 - share) / kCount));
      if (share == 0) continue;
      // Whatever the ranges, packs or not; another step or seed draws anew.
      EXPECT_EQ(rounded_at_random(masters, 5, 9, 33), copies);
      EXPECT_NE(rounded_at_random(masters, 5, 10, 16), copies);
      EXPECT_NE(rounded_at_random(masters, 6, 9, 16), copies);
    }
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(rounded_at_random({infinity, -infinity, 0, 2}, 1, 1, 2),
            (std::vector<float>{infinity, -infinity, 0, 2}));
}

double reduced(const std::vector<std::vector<float>>& parts, std::int64_t shift, bool squares) {
  std::vector<std::unique_ptr<DeviceArray<float>>> arrays;
  std::vector<FloatSpan> spans;
  for (const std::vector<float>& part : parts) {
    arrays.push_back(std::make_unique<DeviceArray<float>>(part));
    spans.push_back(
        {arrays.back()->data() + shift, static_cast<std::int64_t>(part.size()) - shift});
  }
  const DeviceArray<std::byte> workspace(at(sum_workspace_bytes(spans)));
  const DeviceArray<double> result(1);
  if (squares) {
    squared_norm(spans, result.data(), workspace.data(), nullptr);
  } else {
    sum(spans, result.data(), workspace.data(), nullptr);
  }
  return result.values()[0];
}

TEST(Sums, OfManyPartsInDouble) {
  EXPECT_EQ(reduced({}, 0, true), 0);
  EXPECT_EQ(reduced({}, 0, false), 0);
  for (const std::int64_t shift : {0, 1}) {
    std::vector<std::vector<float>> parts = {normal_values<float>(70001, 1),
                                             normal_values<float>(shift, 2),
                                             normal_values<float>(16385, 3)};
    for (unsigned i = 0; i < 200; ++i) parts.push_back(normal_values<float>(i % 9 + 1, i));
    double total = 0, squares = 0, magnitude = 0;
    for (const auto& part : parts) {
      for (std::size_t i = at(shift); i < part.size(); ++i) {
        total += double{part[i]};
        squares += double{part[i]} * double{part[i]};
        magnitude += std::abs(double{part[i]});
      }
    }
    constexpr double kAllowed = 1000 * std::numeric_limits<double>::epsilon();
    EXPECT_NEAR(reduced(parts, shift, true), squares, kAllowed * squares);
    EXPECT_NEAR(reduced(parts, shift, false), total, kAllowed * magnitude);
    EXPECT_EQ(reduced(parts, shift, true), reduced(parts, shift, true));
  }
}

}  // namespace
}  // namespace scone::cuda
