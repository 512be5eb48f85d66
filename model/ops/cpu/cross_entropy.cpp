#include <cmath>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/vector_math.h"

namespace scone {

void CpuBackend::cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses,
                               bool with_gradient, float gradient_scale, std::int64_t rows) {
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
    for (std::int64_t j = 0; j < classes; ++j) largest = row[j] > largest ? row[j] : largest;
    const float at_target = row[target[i]];
    float sum = 0.0F;
    if (with_gradient) {
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = 0; j < classes; ++j) {
        row[j] = fast_exp(row[j] - largest);
        sum += row[j];
      }
      const float factor = gradient_scale / sum;
#pragma omp simd
      for (std::int64_t j = 0; j < classes; ++j) row[j] *= factor;
      row[target[i]] -= gradient_scale;
    } else {
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = 0; j < classes; ++j) sum += fast_exp(row[j] - largest);
    }
    loss[i] = static_cast<float>(std::log(static_cast<double>(sum)) + largest - at_target);
  }
}

}  // namespace scone
