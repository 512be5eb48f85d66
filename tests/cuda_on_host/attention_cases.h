#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "worst_error.h"

/// Pieces of the tests of attention and cross-entropy kernels. Everything runs on T = float and
/// __nv_bfloat16 against references in double, which see the same rounded inputs.
namespace scone::cuda {

using Doubles = std::vector<double>;

/// Memory of the device, filled with NaN bytes.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    EXPECT_EQ(cudaMalloc(&data_, std::max<std::size_t>(bytes(), 1)), cudaSuccess);
    EXPECT_EQ(cudaMemsetAsync(data_, 0xFF, bytes()), cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    EXPECT_EQ(cudaMemcpyAsync(data_, values.data(), bytes(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* data() const { return static_cast<T*>(data_); }
  std::vector<T> values() const {
    std::vector<T> result(size_);
    EXPECT_EQ(cudaMemcpyAsync(result.data(), data_, bytes(), cudaMemcpyDeviceToHost), cudaSuccess);
    return result;
  }
  Doubles doubles() const {
    Doubles result;
    for (const T value : values()) result.push_back(static_cast<double>(static_cast<float>(value)));
    return result;
  }

 private:
  std::size_t bytes() const { return size_ * sizeof(T); }
  std::size_t size_;
  void* data_ = nullptr;
};

template <class T>
constexpr bool kIsBf16 = std::is_same_v<T, __nv_bfloat16>;

/// Standard normal numbers times `factor`, rounded to T.
template <class T>
std::vector<T> normal_values(std::int64_t count, unsigned seed, double factor = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> result;
  for (std::int64_t i = 0; i < count; ++i) {
    result.push_back(static_cast<T>(static_cast<float>(factor * normal(random))));
  }
  return result;
}

template <class T>
Doubles doubles_of(const std::vector<T>& values) {
  Doubles result;
  for (const T value : values) result.push_back(static_cast<double>(static_cast<float>(value)));
  return result;
}

/// Largest error over 1 + the largest magnitude that is expected in the same row of `width`;
/// infinite for NaN.
inline double worst_error(const Doubles& found, const Doubles& expected, std::int64_t width) {
  EXPECT_EQ(found.size(), expected.size());
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    const auto columns = static_cast<std::size_t>(width);
    if (i % columns == 0) {
      largest = 0;
      for (std::size_t j = i; j < i + columns; ++j)
        largest = std::max(largest, std::abs(expected[j]));
    }
    const double error = std::abs(found[i] - expected[i]) / (1 + largest);
    worst = worse(worst, error);
  }
  return worst;
}

/// fp32: epsilon times the length of the sums. bf16: inputs are exact and sums are in fp32, so a
/// result carries its own rounding and that of weights and scores' gradients, each half an epsilon
/// of 2^-8 of the terms' magnitudes, which the largest of the row bounds but for a small factor.
/// `factor`: how much larger than 1 queries and keys are; gradients of scores, rounded, are
/// multiplied by them, and scores are larger by its square.
template <class T>
double tolerance(std::int64_t reduction, int factor) {
  constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
  return kIsBf16<T> ? 4.0 / 256 * factor
                    : kEpsilon * static_cast<double>(reduction * factor * factor);
}

/// Both are [any, width].
template <class T>
void expect_near(const std::string& what, const Doubles& found, const Doubles& expected,
                 std::int64_t width, std::int64_t reduction, int factor = 1) {
  const double worst = worst_error(found, expected, width),
               allowed = tolerance<T>(reduction, factor);
  EXPECT_LT(worst, allowed) << what;
  std::printf("%s %s: error %.1e, allowed %.1e\n", kIsBf16<T> ? "bf16" : "fp32", what.c_str(),
              worst, allowed);
}

/// Attention of rows to lists of rows, and its gradients.
struct AttentionReference {
  Doubles out, log_sum_exp, d_qkv;
};

/// keys(i): rows that row i attends to. qkv: [rows, 3 width], d_out: [rows, width].
template <class Keys>
AttentionReference attention_reference(std::int64_t rows, std::int64_t heads,
                                       std::int64_t head_width, const Doubles& qkv,
                                       const Doubles& d_out, const Keys& keys) {
  const std::int64_t width = heads * head_width;
  const double scale = 1 / std::sqrt(static_cast<double>(head_width));
  const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
  AttentionReference result;
  result.out.resize(at(rows * width));
  result.log_sum_exp.resize(at(rows * heads));
  result.d_qkv.resize(at(rows * 3 * width));
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::vector<std::int64_t> seen = keys(i);
    for (std::int64_t head = 0; head < heads; ++head) {
      const auto q = [&](std::int64_t row, std::int64_t part) {
        return at(row * 3 * width + part * width + head * head_width);
      };
      const std::size_t o = at(i * width + head * head_width);
      const auto dot = [&](const Doubles& a, std::size_t x, std::size_t y) {
        double sum = 0;
        for (std::size_t e = 0; e < at(head_width); ++e) sum += a[x + e] * qkv[y + e];
        return sum;
      };
      Doubles weights;
      double largest = -INFINITY, sum = 0;
      for (const std::int64_t j : seen) {
        weights.push_back(scale * dot(qkv, q(i, 0), q(j, 1)));
        largest = std::max(largest, weights.back());
      }
      for (double& weight : weights) sum += weight = std::exp(weight - largest);
      double delta = 0;
      for (std::size_t s = 0; s < seen.size(); ++s) {
        weights[s] /= sum;
        for (std::size_t e = 0; e < at(head_width); ++e) {
          result.out[o + e] += weights[s] * qkv[q(seen[s], 2) + e];
        }
        delta += weights[s] * dot(d_out, o, q(seen[s], 2));
      }
      result.log_sum_exp[at(i * heads + head)] = largest + std::log(sum);
      for (std::size_t s = 0; s < seen.size(); ++s) {
        const double d_score = weights[s] * (dot(d_out, o, q(seen[s], 2)) - delta) * scale;
        for (std::size_t e = 0; e < at(head_width); ++e) {
          result.d_qkv[q(i, 0) + e] += d_score * qkv[q(seen[s], 1) + e];
          result.d_qkv[q(seen[s], 1) + e] += d_score * qkv[q(i, 0) + e];
          result.d_qkv[q(seen[s], 2) + e] += weights[s] * d_out[o + e];
        }
      }
    }
  }
  return result;
}

/// gtest's names of the two types.
struct TypeNames {
  template <class T>
  static std::string GetName(int) {
    return kIsBf16<T> ? "bf16" : "fp32";
  }
};
using KernelTypes = ::testing::Types<float, __nv_bfloat16>;

}  // namespace scone::cuda
