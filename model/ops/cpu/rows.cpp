#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/rows.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

/// target[to[i]] = source[from[i]]; a null index is i itself.
void copy_rows(const Tensor& source, const std::int32_t* from, const Tensor& target,
               const std::int32_t* to, std::int64_t count) {
  if (count == 0) return;
  const std::int64_t width = source.dim(1);
  const float* in = source.data<float>();
  float* out = target.data<float>();
  const std::size_t bytes = static_cast<std::size_t>(width) * sizeof(float);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < count; ++i)
    std::memcpy(out + (to == nullptr ? i : to[i]) * width,
                in + (from == nullptr ? i : from[i]) * width, bytes);
}

}  // namespace

void CpuBackend::gather_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                             std::int64_t count) {
  copy_rows(source, index.data<std::int32_t>(), target, nullptr, count);
}

void CpuBackend::scatter_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                              std::int64_t count) {
  copy_rows(source, nullptr, target, index.data<std::int32_t>(), count);
}

void CpuBackend::scatter_add_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                                  std::int64_t count) {
  if (count == 0) return;
  const std::int64_t width = source.dim(1);
  const float* from = source.data<float>();
  const std::int32_t* row = index.data<std::int32_t>();
  float* to = target.data<float>();
  // A slice of columns belongs to one thread, which adds in the order of i.
  constexpr std::int64_t kSlice = 32;
#pragma omp parallel for schedule(static)
  for (std::int64_t slice = 0; slice < (width + kSlice - 1) / kSlice; ++slice) {
    const std::int64_t begin = slice * kSlice, end = std::min(begin + kSlice, width);
    for (std::int64_t i = 0; i < count; ++i) {
      const float* value = from + i * width;
      float* total = to + row[i] * width;
#pragma omp simd
      for (std::int64_t column = begin; column < end; ++column) total[column] += value[column];
    }
  }
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
