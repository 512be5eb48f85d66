#include <algorithm>
#include <cmath>
#include <vector>

#include "model/ops/cpu/cpu_backend.h"

namespace scone {

void CpuBackend::norm(NormKind kind, const Tensor& x, const Tensor& gain, const Tensor& bias,
                      const Tensor& y, const Tensor& statistics, std::int64_t rows) {
  const std::int64_t width = gain.elements();
  const float* g = gain.data<float>();
  const float* b = bias.data<float>();
  const float* input = x.data<float>();
  float* output = y.data<float>();
  float* saved = statistics.data<float>();
  const float scale = 1.0F / static_cast<float>(width);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* row = input + i * width;
    float* out = output + i * width;
    float mean = 0.0F;
    if (kind == NormKind::layernorm) {
#pragma omp simd reduction(+ : mean)
      for (std::int64_t j = 0; j < width; ++j) mean += row[j];
      mean *= scale;
    }
    float variance = 0.0F;
#pragma omp simd reduction(+ : variance)
    for (std::int64_t j = 0; j < width; ++j) variance += (row[j] - mean) * (row[j] - mean);
    const float r = 1.0F / std::sqrt(variance * scale + kNormEpsilon);
    if (b != nullptr) {
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) out[j] = (row[j] - mean) * r * g[j] + b[j];
    } else {
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) out[j] = (row[j] - mean) * r * g[j];
    }
    saved[2 * i] = mean;
    saved[2 * i + 1] = r;
  }
}

void CpuBackend::norm_backward(NormKind kind, const Tensor& d_y, const Tensor& x,
                               const Tensor& gain, const Tensor& statistics, const Tensor& d_x,
                               bool accumulate, const Tensor& d_gain, const Tensor& d_bias,
                               std::int64_t rows) {
  const std::int64_t width = gain.elements();
  const float* g = gain.data<float>();
  const float* dy_all = d_y.data<float>();
  const float* x_all = x.data<float>();
  const float* saved = statistics.data<float>();
  float* dx_all = d_x.data<float>();
  const float scale = 1.0F / static_cast<float>(width);
  // Gradients of gain and bias: partial sums of at most 32 blocks of rows, added in order.
  const std::int64_t block_rows = std::max<std::int64_t>(64, (rows + 31) / 32);
  const std::int64_t blocks = (rows + block_rows - 1) / block_rows;
  static thread_local std::vector<float> partial_storage;
  const auto needed = static_cast<std::size_t>(blocks * 2 * width);
  if (partial_storage.size() < needed) partial_storage.resize(needed);
  float* const partial = partial_storage.data();
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < blocks; ++block) {
    float* gain_sum = partial + block * 2 * width;
    float* bias_sum = gain_sum + width;
    std::fill(gain_sum, gain_sum + 2 * width, 0.0F);
    for (std::int64_t i = block * block_rows; i < std::min(rows, (block + 1) * block_rows); ++i) {
      const float* dy = dy_all + i * width;
      const float* row = x_all + i * width;
      float* dx = dx_all + i * width;
      const float mean = saved[2 * i], r = saved[2 * i + 1];
      float sum = 0.0F, dot = 0.0F;
#pragma omp simd reduction(+ : sum, dot)
      for (std::int64_t j = 0; j < width; ++j) {
        const float normal = (row[j] - mean) * r;
        const float d = dy[j] * g[j];
        sum += d;
        dot += d * normal;
        gain_sum[j] += dy[j] * normal;
        bias_sum[j] += dy[j];
      }
      sum = kind == NormKind::layernorm ? sum * scale : 0.0F;
      dot *= scale;
      if (accumulate) {
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j) {
          dx[j] += r * (dy[j] * g[j] - sum - (row[j] - mean) * r * dot);
        }
      } else {
#pragma omp simd
        for (std::int64_t j = 0; j < width; ++j) {
          dx[j] = r * (dy[j] * g[j] - sum - (row[j] - mean) * r * dot);
        }
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

}  // namespace scone
