// Activations, conversions, sums over columns, rope.

#include "model/ops/cuda/elementwise.h"

#include "attention_cases.h"
#include "model/ops/cuda/activation.h"
#include "model/ops/cuda/rope.h"
#include "model/ops/ops.h"
#include "parallel/bf16.h"

namespace scone::cuda {
namespace {

template <class T>
class Elementwise : public ::testing::Test {};
TYPED_TEST_SUITE(Elementwise, KernelTypes, TypeNames);

double gelu_of(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double silu_of(double x) { return x / (1 + std::exp(-x)); }
template <class Function>
double slope_of(Function f, double x) {
  return (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
}

/// Counts around packs and blocks, and an offset that no pack is aligned at.
constexpr std::int64_t kCounts[] = {1, 7, 8, 21, 2048, 2053, 5000};
constexpr std::int64_t kShifts[] = {0, 1};
constexpr std::int64_t kReduction = 16;

/// `count` normal numbers from x[shift]; before them 1.
template <class T>
std::vector<T> shifted_values(std::int64_t count, std::int64_t shift, unsigned seed) {
  auto values = normal_values<T>(count, seed, 3);
  values.insert(values.begin(), static_cast<std::size_t>(shift), static_cast<T>(1.0F));
  return values;
}

/// Against expected(i) for i >= shift; what is before stays NaN.
template <class T, class Expected>
void expect_elements(const std::string& what, const DeviceArray<T>& found, std::int64_t shift,
                     const Expected& expected) {
  const Doubles all = found.doubles();
  Doubles values, wanted;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i < static_cast<std::size_t>(shift)) {
      EXPECT_TRUE(std::isnan(all[i])) << what << ": written before the first element";
    } else {
      values.push_back(all[i]);
      wanted.push_back(expected(i));
    }
  }
  EXPECT_LT(worst_error(values, wanted, 1), tolerance<T>(kReduction, 1)) << what;
}

TYPED_TEST(Elementwise, ActivationsAndTheirGradients) {
  using T = TypeParam;
  for (const std::int64_t n : kCounts) {
    for (const std::int64_t s : kShifts) {
      const auto a = shifted_values<T>(n, s, 1), b = shifted_values<T>(n, s, 2),
                 c = shifted_values<T>(n, s, 3);
      const Doubles x = doubles_of(a), y = doubles_of(b), d = doubles_of(c);
      const DeviceArray<T> a_(a), b_(b), c_(c);
      const std::string what = std::to_string(n) + " from " + std::to_string(s) + ": ";
      const DeviceArray<T> value(a.size()), d_a(a.size()), product(a.size()), d_gate(a.size()),
          d_up(a.size());
      gelu(a_.data() + s, value.data() + s, n, nullptr);
      expect_elements(what + "gelu", value, s, [&](std::size_t i) { return gelu_of(x[i]); });
      gelu_backward(c_.data() + s, a_.data() + s, d_a.data() + s, n, nullptr);
      expect_elements(what + "gelu gradient", d_a, s,
                      [&](std::size_t i) { return d[i] * slope_of(gelu_of, x[i]); });
      swiglu(a_.data() + s, b_.data() + s, product.data() + s, n, nullptr);
      expect_elements(what + "swiglu", product, s,
                      [&](std::size_t i) { return silu_of(x[i]) * y[i]; });
      swiglu_backward(c_.data() + s, a_.data() + s, b_.data() + s, d_gate.data() + s,
                      d_up.data() + s, n, nullptr);
      expect_elements(what + "swiglu gate", d_gate, s,
                      [&](std::size_t i) { return d[i] * y[i] * slope_of(silu_of, x[i]); });
      expect_elements(what + "swiglu up", d_up, s,
                      [&](std::size_t i) { return d[i] * silu_of(x[i]); });
      // The gradients in place.
      gelu_backward(c_.data() + s, a_.data() + s, c_.data() + s, n, nullptr);
      const Doubles in_place = c_.doubles(), apart = d_a.doubles();
      EXPECT_TRUE(std::equal(in_place.begin() + s, in_place.end(), apart.begin() + s)) << what;
    }
  }
}

TYPED_TEST(Elementwise, ActivationsOfLargeNumbers) {
  using T = TypeParam;
  const std::vector<T> x = {static_cast<T>(-200.0F), static_cast<T>(-20.0F), static_cast<T>(20.0F),
                            static_cast<T>(200.0F)};
  const DeviceArray<T> x_(x), y(4), ones(std::vector<T>(4, static_cast<T>(1.0F)));
  gelu(x_.data(), y.data(), 4, nullptr);
  EXPECT_EQ(y.doubles(), (Doubles{0, 0, 20, 200}));
  gelu_backward(ones.data(), x_.data(), y.data(), 4, nullptr);
  EXPECT_EQ(y.doubles(), (Doubles{0, 0, 1, 1}));
  swiglu(x_.data(), ones.data(), y.data(), 4, nullptr);
  EXPECT_NEAR(y.doubles()[0], 0, 1e-30);
  EXPECT_EQ(y.doubles()[3], 200);
}

TEST(Convert, RoundsToTheNearestAndKeepsWhatBf16Holds) {
  for (const std::int64_t n : kCounts) {
    for (const std::int64_t s : kShifts) {
      std::vector<float> x = shifted_values<float>(n, s, 1);
      x.back() = 1.00390625F;  // half way: to the even neighbour, 1
      const DeviceArray<float> x_(x), back(x.size());
      const DeviceArray<__nv_bfloat16> rounded(x.size());
      convert(x_.data() + s, rounded.data() + s, n, nullptr);
      convert(rounded.data() + s, back.data() + s, n, nullptr);
      const auto found = back.values();
      for (std::size_t i = static_cast<std::size_t>(s); i < x.size(); ++i) {
        ASSERT_EQ(found[i], to_float(to_bf16(x[i]))) << n << " from " << s << ", " << i;
      }
    }
  }
}

TYPED_TEST(Elementwise, FillsAndAdds) {
  using T = TypeParam;
  for (const std::int64_t n : kCounts) {
    for (const std::int64_t s : kShifts) {
      const auto size = static_cast<std::size_t>(n + s);
      const DeviceArray<T> filled(size);
      fill(filled.data() + s, 1.5F, n, nullptr);
      expect_elements("fill", filled, s, [](std::size_t) { return 1.5; });
      const auto x = shifted_values<float>(n, s, 1);
      const DeviceArray<float> x_(x), y(std::vector<float>(size, 0.25F));
      add(x_.data() + s, y.data() + s, n, nullptr);
      const auto sums = y.values();
      for (std::size_t i = 0; i < size; ++i) {
        ASSERT_EQ(sums[i], i < static_cast<std::size_t>(s) ? 0.25F : 0.25F + x[i]);
      }
    }
  }
}

TYPED_TEST(Elementwise, BiasAndSumsOfColumns) {
  using T = TypeParam;
  struct Case {
    std::int64_t rows, width;
  };
  for (const Case c : {Case{1, 8}, {3, 21}, {300, 37}, {129, 72}, {5, 2056}, {4099, 8}, {0, 16}}) {
    const std::string what = std::to_string(c.rows) + " x " + std::to_string(c.width);
    const auto x = normal_values<T>(c.rows * c.width, 1), bias = normal_values<T>(c.width, 2);
    const DeviceArray<T> x_(x), bias_(bias);
    const DeviceArray<float> sums(std::vector<float>(static_cast<std::size_t>(c.width), 2)),
        again(std::vector<float>(static_cast<std::size_t>(c.width), 2));
    add_column_sums(x_.data(), sums.data(), c.rows, c.width, nullptr);
    add_column_sums(x_.data(), again.data(), c.rows, c.width, nullptr);
    EXPECT_EQ(sums.values(), again.values());
    Doubles expected(static_cast<std::size_t>(c.width), 2), biased;
    const Doubles values = doubles_of(x), biases = doubles_of(bias);
    for (std::size_t i = 0; i < values.size(); ++i) {
      expected[i % expected.size()] += values[i];
      biased.push_back(values[i] + biases[i % biases.size()]);
    }
    expect_near<float>(what + " column sums", sums.doubles(), expected, c.width, c.rows + 1);
    add_bias(bias_.data(), x_.data(), c.rows, c.width, nullptr);
    if (c.rows > 0) expect_near<T>(what + " bias", x_.doubles(), biased, c.width, 2);
  }
}

TYPED_TEST(Elementwise, Rope) {
  using T = TypeParam;
  struct Case {
    std::int64_t rows, heads, head_width;
  };
  for (const Case c : {Case{1, 1, 2}, {5, 3, 16}, {4, 2, 10}, {3, 2, 64}, {2, 1, 256}}) {
    const std::int64_t width = c.heads * c.head_width, half = c.head_width / 2;
    const auto qkv = normal_values<T>(c.rows * 3 * width, 1);
    std::vector<std::int32_t> positions = {0, 1, 1000003, 77, 4096};
    positions.resize(static_cast<std::size_t>(c.rows));
    if (c.rows == 1) positions[0] = 1000003;
    const Doubles x = doubles_of(qkv);
    Doubles expected = x;
    for (std::int64_t i = 0; i < c.rows; ++i) {
      for (std::int64_t head = 0; head < 2 * c.heads; ++head) {
        for (std::int64_t j = 0; j < half; ++j) {
          const double angle = positions[static_cast<std::size_t>(i)] *
                               std::pow(double{kRopeBase}, -2.0 * static_cast<double>(j) /
                                                               static_cast<double>(c.head_width));
          const auto low = static_cast<std::size_t>(i * 3 * width + head * c.head_width + j);
          const auto high = low + static_cast<std::size_t>(half);
          expected[low] = x[low] * std::cos(angle) - x[high] * std::sin(angle);
          expected[high] = x[high] * std::cos(angle) + x[low] * std::sin(angle);
        }
      }
    }
    const DeviceArray<T> qkv_(qkv);
    const DeviceArray<std::int32_t> positions_(positions);
    rope(qkv_.data(), positions_.data(), c.heads, c.head_width, false, c.rows, nullptr);
    expect_near<T>("rope, heads of " + std::to_string(c.head_width), qkv_.doubles(), expected,
                   3 * width, 4);
    rope(qkv_.data(), positions_.data(), c.heads, c.head_width, true, c.rows, nullptr);
    expect_near<T>("and back", qkv_.doubles(), x, 3 * width, 8);
  }
}

}  // namespace
}  // namespace scone::cuda
