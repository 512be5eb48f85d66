#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "model/ops/cpu/cpu_backend.h"

namespace scone {
namespace {

constexpr std::int64_t kBlock = 4096;  // elements summed as one part of a reduction

/// Sum over blocks of term(first, end), each block on one thread, blocks added in order.
template <class Term>
double blockwise_sum(std::int64_t elements, Term term) {
  const std::int64_t blocks = (elements + kBlock - 1) / kBlock;
  static thread_local std::vector<double> parts_storage;
  if (parts_storage.size() < static_cast<std::size_t>(blocks)) {
    parts_storage.resize(static_cast<std::size_t>(blocks));
  }
  double* const parts = parts_storage.data();
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < blocks; ++block) {
    parts[block] = term(block * kBlock, std::min(elements, (block + 1) * kBlock));
  }
  double sum = 0.0;
  for (std::int64_t block = 0; block < blocks; ++block) sum += parts[block];
  return sum;
}

}  // namespace

Backend& cpu_backend() {
  static CpuBackend backend;
  return backend;
}

void CpuBackend::upload(std::span<const std::int32_t> source, const Tensor& target) {
  if (!source.empty()) {
    std::memcpy(target.data<std::int32_t>(), source.data(), source.size_bytes());
  }
}

void CpuBackend::download(const Tensor& source, std::span<float> target) {
  if (!target.empty()) std::memcpy(target.data(), source.data<float>(), target.size_bytes());
}

void CpuBackend::copy(const Tensor& source, const Tensor& target) {
  if (!source.empty()) std::memcpy(target.raw(), source.raw(), source.bytes());
}

void CpuBackend::zero(const Tensor& target) {
  if (!target.empty()) std::memset(target.raw(), 0, target.bytes());
}

void CpuBackend::adamw(const Tensor& value, const Tensor& gradient, const Tensor& m,
                       const Tensor& v, const AdamwStep& step) {
  float* w = value.data<float>();
  const float* g = gradient.data<float>();
  float* first = m.data<float>();
  float* second = v.data<float>();
  const double steps = static_cast<double>(step.step);
  const auto correction1 =
      static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(step.beta1), steps)));
  const auto correction2 =
      static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(step.beta2), steps)));
  const float decay = 1.0F - step.lr * step.weight_decay;
  const AdamwStep s = step;
  const std::int64_t elements = value.elements();
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) {
    const float d = g[i] * s.gradient_scale;
    first[i] = s.beta1 * first[i] + (1.0F - s.beta1) * d;
    second[i] = s.beta2 * second[i] + (1.0F - s.beta2) * d * d;
    const float divisor = std::sqrt(second[i] * correction2) + s.eps;
    w[i] = w[i] * decay - s.lr * (first[i] * correction1) / divisor;
  }
}

void CpuBackend::axpy(float factor, const Tensor& x, const Tensor& y) {
  const float* in = x.data<float>();
  float* out = y.data<float>();
  const std::int64_t elements = x.elements();
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) out[i] += factor * in[i];
}

void CpuBackend::scale(float factor, const Tensor& x) {
  float* values = x.data<float>();
  const std::int64_t elements = x.elements();
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) values[i] *= factor;
}

double CpuBackend::squared_norm(const Tensor& x) {
  const float* values = x.data<float>();
  return blockwise_sum(x.elements(), [values](std::int64_t begin, std::int64_t end) {
    double part = 0.0;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = begin; i < end; ++i) {
      part += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    }
    return part;
  });
}

double CpuBackend::sum(const Tensor& x) {
  const float* values = x.data<float>();
  return blockwise_sum(x.elements(), [values](std::int64_t begin, std::int64_t end) {
    double part = 0.0;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = begin; i < end; ++i) part += static_cast<double>(values[i]);
    return part;
  });
}

bool CpuBackend::all_finite(const Tensor& x) {
  const float* values = x.data<float>();
  const double bad = blockwise_sum(x.elements(), [values](std::int64_t begin, std::int64_t end) {
    // 0 * value is NaN exactly where value is infinite or NaN, and stays so in the sum.
    float part = 0.0F;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = begin; i < end; ++i) part += 0.0F * values[i];
    return static_cast<double>(part);
  });
  return !std::isnan(bad);
}

}  // namespace scone
