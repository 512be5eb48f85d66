#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/cross_entropy.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

template <class T>
float largest_of(const T* row, std::int64_t used) {
  float largest = std::numeric_limits<float>::lowest();
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = 0; j < used; ++j) {
    const float value = to_float(row[j]);
    largest = value > largest ? value : largest;
  }
  return largest;
}

template <class T>
float sum_of_exponentials(const T* row, std::int64_t used, float largest) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < used; ++j) sum += fast_exp(to_float(row[j]) - largest);
  return sum;
}

/// exponentials[j] = exp(row[j] - largest), may be the row itself. Returns their sum.
template <class T>
float exponentials_of(const T* row, std::int64_t used, float largest, float* exponentials) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < used; ++j) {
    exponentials[j] = fast_exp(to_float(row[j]) - largest);
    sum += exponentials[j];
  }
  return sum;
}

template <class T>
float log_of_sum(float sum, float largest, T at_target) {
  return static_cast<float>(std::log(static_cast<double>(sum)) + largest - to_float(at_target));
}

template <class T>
void losses_of(T* logits, std::int64_t classes, const std::int32_t* targets, std::int64_t used,
               float* losses, std::int64_t rows) {
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    losses[i] = 0.0F;
    if (targets[i] < 0) continue;
    const T* row = logits + i * classes;
    const float largest = largest_of(row, used);
    losses[i] = log_of_sum(sum_of_exponentials(row, used, largest), largest, row[targets[i]]);
  }
}

template <class T>
void losses_and_gradients(T* logits, std::int64_t classes, const std::int32_t* targets,
                          std::int64_t used, float* losses, float gradient_scale,
                          std::int64_t rows) {
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    static thread_local Scratch scratch;
    T* row = logits + i * classes;
    const std::int32_t target = targets[i];
    losses[i] = 0.0F;
    if (target < 0) {
      std::fill_n(row, classes, from_float<T>(0.0F));
      continue;
    }
    float* exponentials;
    if constexpr (std::is_same_v<T, float>)
      exponentials = row;
    else
      exponentials = scratch.get<float>(used);
    const float largest = largest_of(row, used);
    const T at_target = row[target];
    const float sum = exponentials_of(row, used, largest, exponentials);
    losses[i] = log_of_sum(sum, largest, at_target);
    const float factor = gradient_scale / sum;
    const float gradient_of_target = exponentials[target] * factor - gradient_scale;
#pragma omp simd
    for (std::int64_t j = 0; j < used; ++j) row[j] = from_float<T>(exponentials[j] * factor);
    row[target] = from_float<T>(gradient_of_target);
    std::fill(row + used, row + classes, from_float<T>(0.0F));
  }
}

template <class T>
void part_statistics(const T* logits, std::int64_t classes, const std::int32_t* targets,
                     std::int64_t first_class, std::int64_t used, float* statistics,
                     std::int64_t rows) {
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* row = logits + i * classes;
    const float largest = largest_of(row, used);
    const std::int64_t own = targets[i] - first_class;
    statistics[3 * i] = largest;
    statistics[3 * i + 1] = sum_of_exponentials(row, used, largest);
    statistics[3 * i + 2] = targets[i] >= 0 && own >= 0 && own < used ? to_float(row[own]) : 0.0F;
  }
}

struct JoinedStatistics {
  const float* all;
  std::int64_t parts, rows;
};

template <class T>
void join_parts(T* logits, std::int64_t classes, const std::int32_t* targets,
                std::int64_t first_class, std::int64_t used, const JoinedStatistics& statistics,
                float* losses, bool with_gradient, float gradient_scale) {
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < statistics.rows; ++i) {
    T* row = logits + i * classes;
    losses[i] = 0.0F;
    if (targets[i] < 0) {
      if (with_gradient) std::fill_n(row, classes, from_float<T>(0.0F));
      continue;
    }
    float largest = std::numeric_limits<float>::lowest();
    for (std::int64_t part = 0; part < statistics.parts; ++part)
      largest = std::max(largest, statistics.all[(part * statistics.rows + i) * 3]);
    float sum = 0.0F, at_target = 0.0F;
    for (std::int64_t part = 0; part < statistics.parts; ++part) {
      const float* statistic = statistics.all + (part * statistics.rows + i) * 3;
      sum += statistic[1] * std::exp(statistic[0] - largest);
      at_target += statistic[2];  // 0 but at one part
    }
    losses[i] = log_of_sum(sum, largest, at_target);
    if (!with_gradient) continue;
    const float factor = gradient_scale / sum;
    const std::int64_t own = targets[i] - first_class;
    const bool has_target = own >= 0 && own < used;
    const float own_logit = has_target ? to_float(row[own]) : 0.0F;
#pragma omp simd
    for (std::int64_t j = 0; j < used; ++j)
      row[j] = from_float<T>(factor * fast_exp(to_float(row[j]) - largest));
    if (has_target)
      row[own] = from_float<T>(factor * fast_exp(own_logit - largest) - gradient_scale);
    std::fill(row + used, row + classes, from_float<T>(0.0F));
  }
}

template <class T>
void cross_entropy_of(const Tensor& logits, const Tensor& targets, std::int64_t used,
                      const Tensor& losses, bool with_gradient, float gradient_scale,
                      std::int64_t rows) {
  const std::int32_t* target = targets.data<std::int32_t>();
  if (with_gradient)
    losses_and_gradients(logits.data<T>(), logits.dim(1), target, used, losses.data<float>(),
                         gradient_scale, rows);
  else
    losses_of(logits.data<T>(), logits.dim(1), target, used, losses.data<float>(), rows);
}

}  // namespace

void CpuBackend::cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t used,
                               const Tensor& losses, bool with_gradient, float gradient_scale,
                               std::int64_t rows) {
  (is_bf16(logits) ? cross_entropy_of<Bf16> : cross_entropy_of<float>)(logits, targets, used,
                                                                       losses, with_gradient,
                                                                       gradient_scale, rows);
}

void CpuBackend::cross_entropy_part(const Tensor& logits, const Tensor& targets,
                                    std::int64_t first_class, std::int64_t used,
                                    const Tensor& statistics, std::int64_t rows) {
  const std::int32_t* target = targets.data<std::int32_t>();
  float* to = statistics.data<float>();
  if (is_bf16(logits))
    part_statistics(logits.data<Bf16>(), logits.dim(1), target, first_class, used, to, rows);
  else
    part_statistics(logits.data<float>(), logits.dim(1), target, first_class, used, to, rows);
}

void CpuBackend::cross_entropy_join(const Tensor& logits, const Tensor& targets,
                                    std::int64_t first_class, std::int64_t used,
                                    const Tensor& all_statistics, std::int64_t parts,
                                    const Tensor& losses, bool with_gradient, float gradient_scale,
                                    std::int64_t rows) {
  const JoinedStatistics statistics{all_statistics.data<float>(), parts, rows};
  const std::int32_t* target = targets.data<std::int32_t>();
  if (is_bf16(logits))
    join_parts(logits.data<Bf16>(), logits.dim(1), target, first_class, used, statistics,
               losses.data<float>(), with_gradient, gradient_scale);
  else
    join_parts(logits.data<float>(), logits.dim(1), target, first_class, used, statistics,
               losses.data<float>(), with_gradient, gradient_scale);
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
