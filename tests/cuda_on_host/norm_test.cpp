#include "model/ops/cuda/norm.h"

#include "attention_cases.h"
#include "model/ops/ops.h"

namespace scone::cuda {
namespace {

struct NormReference {
  Doubles y, statistics, d_x, d_gain, d_bias;
};

/// d_x and the gradients of gain and bias are added to what `before` is, in each element.
NormReference norm_reference(NormKind kind, const Doubles& x, const Doubles& gain,
                             const Doubles& bias, const Doubles& d_y, std::size_t width,
                             double d_x_before, double before) {
  const std::size_t rows = x.size() / width;
  const auto n = static_cast<double>(width);
  NormReference result;
  result.d_gain.assign(width, before);
  result.d_bias.assign(width, before);
  for (std::size_t i = 0; i < rows; ++i) {
    const double* const row = x.data() + i * width;
    const double* const d = d_y.data() + i * width;
    double mean = 0, variance = 0, sum = 0, dot = 0;
    for (std::size_t j = 0; j < width; ++j) mean += row[j] / n;
    if (kind == NormKind::rmsnorm) mean = 0;
    for (std::size_t j = 0; j < width; ++j) variance += (row[j] - mean) * (row[j] - mean) / n;
    const double r = 1 / std::sqrt(variance + double{kNormEpsilon});
    for (std::size_t j = 0; j < width; ++j) {
      const double normal = (row[j] - mean) * r;
      result.y.push_back(normal * gain[j] + (bias.empty() ? 0 : bias[j]));
      result.d_gain[j] += d[j] * normal;
      result.d_bias[j] += d[j];
      sum += d[j] * gain[j] / n;
      dot += d[j] * gain[j] * normal / n;
    }
    if (kind == NormKind::rmsnorm) sum = 0;
    for (std::size_t j = 0; j < width; ++j) {
      result.d_x.push_back(d_x_before + r * (d[j] * gain[j] - sum - (row[j] - mean) * r * dot));
    }
    result.statistics.insert(result.statistics.end(), {mean, r});
  }
  return result;
}

template <class T>
class Norm : public ::testing::Test {};
TYPED_TEST_SUITE(Norm, KernelTypes, TypeNames);

template <class T>
void check_norm(NormKind kind, std::int64_t rows, std::int64_t width, bool with_bias,
                bool accumulate) {
  const auto w = static_cast<std::size_t>(width);
  const auto x = normal_values<T>(rows * width, 1), d_y = normal_values<T>(rows * width, 2);
  const auto gain = normal_values<T>(width, 3), bias = normal_values<T>(width, 4);
  const std::string what = (kind == NormKind::layernorm ? "layernorm " : "rmsnorm ") +
                           std::to_string(rows) + " x " + std::to_string(width) +
                           (with_bias ? " with bias" : "") + (accumulate ? " accumulating" : "");
  const NormReference expected = norm_reference(kind, doubles_of(x), doubles_of(gain),
                                                with_bias ? doubles_of(bias) : Doubles(),
                                                doubles_of(d_y), w, accumulate ? 0.5 : 0, 2);
  const DeviceArray<T> x_(x), d_y_(d_y), gain_(gain), bias_(bias), y_(x.size());
  const DeviceArray<T> d_x_(std::vector<T>(x.size(), static_cast<T>(0.5F)));
  const DeviceArray<float> statistics(static_cast<std::size_t>(rows) * 2);
  norm(kind, x_.data(), gain_.data(), with_bias ? bias_.data() : nullptr, y_.data(),
       statistics.data(), rows, width, nullptr);
  expect_near<T>(what + " y", y_.doubles(), expected.y, width, width);
  expect_near<float>(what + " statistics", statistics.doubles(), expected.statistics, 2, width);
  const DeviceArray<std::byte> workspace(
      static_cast<std::size_t>(norm_backward_workspace_bytes(rows, width)));
  Doubles first;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const DeviceArray<float> d_gain(std::vector<float>(w, 2)), d_bias(std::vector<float>(w, 2));
    const DeviceArray<T> d_x(std::vector<T>(x.size(), static_cast<T>(0.5F)));
    norm_backward(kind, d_y_.data(), x_.data(), gain_.data(), statistics.data(), d_x.data(),
                  accumulate, d_gain.data(), with_bias ? d_bias.data() : nullptr, rows, width,
                  workspace.data(), nullptr);
    if (repeat > 0) {
      EXPECT_EQ(d_gain.doubles(), first) << what << ": not the same in another order of blocks";
      continue;
    }
    first = d_gain.doubles();
    expect_near<T>(what + " d_x", d_x.doubles(), expected.d_x, width, width);
    // Sums in fp32 of exact inputs, whatever T is.
    expect_near<float>(what + " d_gain", first, expected.d_gain, width, rows + 8);
    if (with_bias) {
      expect_near<float>(what + " d_bias", d_bias.doubles(), expected.d_bias, width, rows + 8);
    }
  }
}

TYPED_TEST(Norm, AgreesWithTheReferenceAtAnyWidth) {
  // A warp a row with 1, 2, 3, 4, 8 packs a lane, a block a row, and widths that are no multiple.
  for (const std::int64_t width : {8, 21, 37, 64, 200, 264, 384, 520, 768, 1600, 2056}) {
    for (const NormKind kind : {NormKind::layernorm, NormKind::rmsnorm}) {
      check_norm<TypeParam>(kind, 5, width, kind == NormKind::layernorm, width % 16 != 0);
    }
  }
}

TYPED_TEST(Norm, AgreesWithTheReferenceWhereRowsAreWide) {
  // A block a row; two packs to a thread of the backward pass, and four; beyond.
  constexpr std::int64_t kPack = 16 / sizeof(TypeParam);
  for (const std::int64_t packs : {288, 1025, 2049}) {
    const std::int64_t width = packs * kPack;
    check_norm<TypeParam>(NormKind::layernorm, 2, width, true, true);
  }
}

TYPED_TEST(Norm, AddsUpTheRowsOfManyBlocks) {
  check_norm<TypeParam>(NormKind::layernorm, 333, 64, true, false);
  check_norm<TypeParam>(NormKind::rmsnorm, 70, 21, false, true);
  check_norm<TypeParam>(NormKind::layernorm, 4200, 8, true, false);  // more than the most parts
  check_norm<TypeParam>(NormKind::layernorm, 1, 96, true, false);
}

TYPED_TEST(Norm, ServesUnalignedRowsAndNone) {
  using T = TypeParam;
  constexpr std::int64_t kRows = 3, kWidth = 64;
  auto x = normal_values<T>(kRows * kWidth + 1, 1);
  const auto gain = normal_values<T>(kWidth, 3);
  const DeviceArray<T> x_(x), gain_(gain), y(x.size());
  const DeviceArray<float> statistics(kRows * 2);
  norm(NormKind::rmsnorm, x_.data() + 1, gain_.data(), static_cast<const T*>(nullptr), y.data() + 1,
       statistics.data(), kRows, kWidth, nullptr);
  x.erase(x.begin());
  const Doubles expected = norm_reference(NormKind::rmsnorm, doubles_of(x), doubles_of(gain), {},
                                          doubles_of(x), kWidth, 0, 0)
                               .y;
  Doubles found = y.doubles();
  EXPECT_TRUE(std::isnan(found.front())) << "written before the first element";
  found.erase(found.begin());
  expect_near<T>("unaligned", found, expected, kWidth, kWidth);
  const DeviceArray<float> d_gain(std::vector<float>(kWidth, 1));
  norm<T>(NormKind::layernorm, nullptr, gain_.data(), nullptr, nullptr, nullptr, 0, kWidth,
          nullptr);
  norm_backward<T>(NormKind::layernorm, nullptr, nullptr, gain_.data(), nullptr, nullptr, false,
                   d_gain.data(), nullptr, 0, kWidth, nullptr, nullptr);
  EXPECT_EQ(d_gain.doubles(), Doubles(kWidth, 1));
}

}  // namespace
}  // namespace scone::cuda
