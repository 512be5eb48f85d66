#include <algorithm>
#include <cmath>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/norm.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

template <class T>
void norm_of(NormKind kind, const Tensor& x, const Tensor& gain, const Tensor& bias,
             const Tensor& y, const Tensor& statistics, std::int64_t rows) {
  const std::int64_t width = gain.elements();
  const T* g = gain.data<T>();
  const T* b = bias.data<T>();
  const T* input = x.data<T>();
  T* output = y.data<T>();
  float* saved = statistics.data<float>();
  const float scale = 1.0F / static_cast<float>(width);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* row = input + i * width;
    T* out = output + i * width;
    float mean = 0.0F;
    if (kind == NormKind::layernorm) {
#pragma omp simd reduction(+ : mean)
      for (std::int64_t j = 0; j < width; ++j) mean += to_float(row[j]);
      mean *= scale;
    }
    float variance = 0.0F;
#pragma omp simd reduction(+ : variance)
    for (std::int64_t j = 0; j < width; ++j) {
      const float difference = to_float(row[j]) - mean;
      variance += difference * difference;
    }
    const float r = 1.0F / std::sqrt(variance * scale + kNormEpsilon);
    if (b != nullptr) {
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j)
        out[j] = from_float<T>((to_float(row[j]) - mean) * r * to_float(g[j]) + to_float(b[j]));
    } else {
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j)
        out[j] = from_float<T>((to_float(row[j]) - mean) * r * to_float(g[j]));
    }
    saved[2 * i] = mean;
    saved[2 * i + 1] = r;
  }
}

template <class T>
void norm_backward_of(NormKind kind, const Tensor& d_y, const Tensor& x, const Tensor& gain,
                      const Tensor& statistics, const Tensor& d_x, bool accumulate,
                      const Tensor& d_gain, const Tensor& d_bias, std::int64_t rows) {
  const std::int64_t width = gain.elements();
  const T* g = gain.data<T>();
  const T* dy_all = d_y.data<T>();
  const T* x_all = x.data<T>();
  const float* saved = statistics.data<float>();
  T* dx_all = d_x.data<T>();
  const float scale = 1.0F / static_cast<float>(width);
  // Gradients of gain and bias: partial sums of at most 32 blocks of rows, added in order.
  const std::int64_t block_rows = std::max<std::int64_t>(64, (rows + 31) / 32);
  const std::int64_t blocks = (rows + block_rows - 1) / block_rows;
  static thread_local Scratch scratch;
  float* const partial = scratch.get<float>(blocks * 2 * width);
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < blocks; ++block) {
    float* gain_sum = partial + block * 2 * width;
    float* bias_sum = gain_sum + width;
    std::fill(gain_sum, gain_sum + 2 * width, 0.0F);
    for (std::int64_t i = block * block_rows; i < std::min(rows, (block + 1) * block_rows); ++i) {
      const T* dy = dy_all + i * width;
      const T* row = x_all + i * width;
      T* dx = dx_all + i * width;
      const float mean = saved[2 * i], r = saved[2 * i + 1];
      float sum = 0.0F, dot = 0.0F;
#pragma omp simd reduction(+ : sum, dot)
      for (std::int64_t j = 0; j < width; ++j) {
        const float normal = (to_float(row[j]) - mean) * r, gradient = to_float(dy[j]);
        const float d = gradient * to_float(g[j]);
        sum += d;
        dot += d * normal;
        gain_sum[j] += gradient * normal;
        bias_sum[j] += gradient;
      }
      sum = kind == NormKind::layernorm ? sum * scale : 0.0F;
      dot *= scale;
      if (!accumulate) {
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j)
          dx[j] = from_float<T>(
              r * (to_float(dy[j]) * to_float(g[j]) - sum - (to_float(row[j]) - mean) * r * dot));
      } else {
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j)
          dx[j] = from_float<T>(to_float(dx[j]) + r * (to_float(dy[j]) * to_float(g[j]) - sum -
                                                       (to_float(row[j]) - mean) * r * dot));
      }
    }
  }
  float* dg = d_gain.data<float>();
  float* db = d_bias.data<float>();
  for (std::int64_t block = 0; block < blocks; ++block) {
    const float* sums = partial + block * 2 * width;
    for (std::int64_t j = 0; j < width; ++j) dg[j] += sums[j];
    for (std::int64_t j = 0; db != nullptr && j < width; ++j) db[j] += sums[width + j];
  }
}

}  // namespace

void CpuBackend::norm(NormKind kind, const Tensor& x, const Tensor& gain, const Tensor& bias,
                      const Tensor& y, const Tensor& statistics, std::int64_t rows) {
  (is_bf16(x) ? norm_of<Bf16> : norm_of<float>)(kind, x, gain, bias, y, statistics, rows);
}

void CpuBackend::norm_backward(NormKind kind, const Tensor& d_y, const Tensor& x,
                               const Tensor& gain, const Tensor& statistics, const Tensor& d_x,
                               bool accumulate, const Tensor& d_gain, const Tensor& d_bias,
                               std::int64_t rows) {
  (is_bf16(x) ? norm_backward_of<Bf16> : norm_backward_of<float>)(kind, d_y, x, gain, statistics,
                                                                  d_x, accumulate, d_gain, d_bias,
                                                                  rows);
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
