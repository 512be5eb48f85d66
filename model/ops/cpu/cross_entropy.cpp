#include <algorithm>
#include <cmath>
#include <limits>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/vector_math.h"

namespace scone {

void CpuBackend::cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t used,
                               const Tensor& losses, bool with_gradient, float gradient_scale,
                               std::int64_t rows) {
  const std::int64_t classes = logits.dim(1);
  float* all = logits.data<float>();
  const std::int32_t* target = targets.data<std::int32_t>();
  float* loss = losses.data<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = all + i * classes;
    if (target[i] < 0) {
      loss[i] = 0.0F;
      for (std::int64_t j = 0; with_gradient && j < classes; ++j) row[j] = 0.0F;
      continue;
    }
    float largest = row[0];
#pragma omp simd reduction(max : largest)
    for (std::int64_t j = 0; j < used; ++j) largest = row[j] > largest ? row[j] : largest;
    const float at_target = row[target[i]];
    float sum = 0.0F;
    if (with_gradient) {
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = 0; j < used; ++j) {
        row[j] = fast_exp(row[j] - largest);
        sum += row[j];
      }
      const float factor = gradient_scale / sum;
#pragma omp simd
      for (std::int64_t j = 0; j < used; ++j) row[j] *= factor;
      for (std::int64_t j = used; j < classes; ++j) row[j] = 0.0F;
      row[target[i]] -= gradient_scale;
    } else {
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = 0; j < used; ++j) sum += fast_exp(row[j] - largest);
    }
    loss[i] = static_cast<float>(std::log(static_cast<double>(sum)) + largest - at_target);
  }
}

void CpuBackend::cross_entropy_part(const Tensor& logits, const Tensor& targets,
                                    std::int64_t first_class, std::int64_t used,
                                    const Tensor& statistics, std::int64_t rows) {
  const std::int64_t classes = logits.dim(1);
  const float* all = logits.data<float>();
  const std::int32_t* target = targets.data<std::int32_t>();
  float* statistic = statistics.data<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* row = all + i * classes;
    float largest = std::numeric_limits<float>::lowest();
#pragma omp simd reduction(max : largest)
    for (std::int64_t j = 0; j < used; ++j) largest = row[j] > largest ? row[j] : largest;
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < used; ++j) sum += fast_exp(row[j] - largest);
    const std::int64_t own = target[i] - first_class;
    statistic[3 * i] = largest;
    statistic[3 * i + 1] = sum;
    statistic[3 * i + 2] = target[i] >= 0 && own >= 0 && own < used ? row[own] : 0.0F;
  }
}

void CpuBackend::cross_entropy_join(const Tensor& logits, const Tensor& targets,
                                    std::int64_t first_class, std::int64_t used,
                                    const Tensor& all_statistics, std::int64_t parts,
                                    const Tensor& losses, bool with_gradient, float gradient_scale,
                                    std::int64_t rows) {
  const std::int64_t classes = logits.dim(1);
  float* all = logits.data<float>();
  const std::int32_t* target = targets.data<std::int32_t>();
  const float* statistics = all_statistics.data<float>();
  float* loss = losses.data<float>();
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = all + i * classes;
    if (target[i] < 0) {
      loss[i] = 0.0F;
      for (std::int64_t j = 0; with_gradient && j < classes; ++j) row[j] = 0.0F;
      continue;
    }
    float largest = std::numeric_limits<float>::lowest();
    for (std::int64_t part = 0; part < parts; ++part)
      largest = std::max(largest, statistics[(part * rows + i) * 3]);
    float sum = 0.0F, at_target = 0.0F;
    for (std::int64_t part = 0; part < parts; ++part) {
      const float* statistic = statistics + (part * rows + i) * 3;
      sum += statistic[1] * std::exp(statistic[0] - largest);
      at_target += statistic[2];  // 0 but at one part
    }
    loss[i] = static_cast<float>(std::log(static_cast<double>(sum)) + largest - at_target);
    if (!with_gradient) continue;
    const float factor = gradient_scale / sum;
#pragma omp simd
    for (std::int64_t j = 0; j < used; ++j) row[j] = factor * fast_exp(row[j] - largest);
    for (std::int64_t j = used; j < classes; ++j) row[j] = 0.0F;
    const std::int64_t own = target[i] - first_class;
    if (own >= 0 && own < used) row[own] -= gradient_scale;
  }
}

}  // namespace scone
