#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <stdexcept>
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

void CpuBackend::upload(std::span<const float> source, const Tensor& target) {
  if (!source.empty()) std::memcpy(target.data<float>(), source.data(), source.size_bytes());
}

void CpuBackend::download(const Tensor& source, std::span<float> target) {
  if (!target.empty()) std::memcpy(target.data(), source.data<float>(), target.size_bytes());
}

void CpuBackend::copy(const Tensor& source, const Tensor& target) {
  if (!source.empty()) std::memcpy(target.raw(), source.raw(), source.bytes());
}

void CpuBackend::zero(const Tensor& target) {
  constexpr std::int64_t kBytes = 1 << 20;  // cleared by one thread at a time
  auto* first = static_cast<std::byte*>(target.raw());
  const auto bytes = static_cast<std::int64_t>(target.bytes());
#pragma omp parallel for schedule(static) if (bytes > kBytes)
  for (std::int64_t begin = 0; begin < bytes; begin += kBytes)
    std::memset(first + begin, 0, static_cast<std::size_t>(std::min(kBytes, bytes - begin)));
}

void CpuBackend::adamw(const AdamwTensors& tensors, std::span<const AdamwRange> ranges,
                       const AdamwStep& step) {
  if (!tensors.working.empty()) throw std::logic_error("the CPU backend works on fp32 alone");
  const double steps = static_cast<double>(step.step);
  const auto correction1 =
      static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(step.beta1), steps)));
  const auto correction2 =
      static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(step.beta2), steps)));
  const AdamwStep s = step;
  for (const AdamwRange& range : ranges) {
    float* w = tensors.values.data<float>() + range.value_begin;
    const float* g = tensors.gradients.data<float>() + range.state_begin;
    float* first = tensors.m.data<float>() + range.state_begin;
    float* second = tensors.v.data<float>() + range.state_begin;
    const float decay = range.weight_decay ? 1.0F - step.lr * step.weight_decay : 1.0F;
    const std::int64_t elements = range.count;
#pragma omp parallel for simd schedule(static)
    for (std::int64_t i = 0; i < elements; ++i) {
      const float d = g[i] * s.gradient_scale;
      first[i] = s.beta1 * first[i] + (1.0F - s.beta1) * d;
      second[i] = s.beta2 * second[i] + (1.0F - s.beta2) * d * d;
      const float divisor = std::sqrt(second[i] * correction2) + s.eps;
      w[i] = w[i] * decay - s.lr * (first[i] * correction1) / divisor;
    }
  }
}

double CpuBackend::squared_norm(std::span<const Tensor> parts) {
  double sum = 0.0;
  for (const Tensor& x : parts) {
    const float* values = x.data<float>();
    sum += blockwise_sum(x.elements(), [values](std::int64_t begin, std::int64_t end) {
      double part = 0.0;
#pragma omp simd reduction(+ : part)
      for (std::int64_t i = begin; i < end; ++i)
        part += static_cast<double>(values[i]) * static_cast<double>(values[i]);
      return part;
    });
  }
  return sum;
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

}  // namespace scone
