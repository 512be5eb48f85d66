#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "model/ops/ops.h"

namespace scone::cuda {

// Device memory of any alignment; 16 bytes at a time where pointers and ranges allow. Throw
// CudaError.

/// AdamwTensors by pointers; working may be null.
struct AdamwPointers {
  float* values;
  const float* gradients;
  float* m;
  float* v;
  __nv_bfloat16* working;
};

/// Backend::adamw: all ranges in one launch for each kMostAdamwRanges of them. With stochastic
/// rounding, value i takes 16 random bits of Philox4x32-10 at counter (i / 4, step) under the key
/// seed.
void adamw(const AdamwPointers& tensors, std::span<const AdamwRange> ranges, const AdamwStep& step,
           cudaStream_t stream);
constexpr int kMostAdamwRanges = 96;

struct FloatSpan {
  const float* data;
  std::int64_t elements;
};

/// Bytes of workspace that squared_norm or sum of these parts needs, aligned to 16.
std::int64_t sum_workspace_bytes(std::span<const FloatSpan> parts);

/// *result (device memory) = sum of squares, or sum, of all elements of the parts (0 of none); in
/// double, in an order fixed by the parts' numbers of elements.
void squared_norm(std::span<const FloatSpan> parts, double* result, void* workspace,
                  cudaStream_t stream);
void sum(std::span<const FloatSpan> parts, double* result, void* workspace, cudaStream_t stream);

}  // namespace scone::cuda
