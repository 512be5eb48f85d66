#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "model/model_config.h"

namespace scone::cuda {

// T: float or __nv_bfloat16. Pointers are device memory, of any alignment and width; all is fastest
// where rows are multiples of 16 bytes. Results depend on shapes and values alone. Throw CudaError.

/// Backend::norm. x, y: [rows, width]; gain, bias: [width], bias may be null; statistics: [rows,
/// 2].
template <class T>
void norm(NormKind kind, const T* x, const T* gain, const T* bias, T* y, float* statistics,
          std::int64_t rows, std::int64_t width, cudaStream_t stream);

/// Bytes of workspace that norm_backward needs, aligned to 16.
std::int64_t norm_backward_workspace_bytes(std::int64_t rows, std::int64_t width);

/// Backend::norm_backward. d_y, x, d_x: [rows, width]; d_gain, d_bias: [width], added to; d_bias
/// may be null.
template <class T>
void norm_backward(NormKind kind, const T* d_y, const T* x, const T* gain, const float* statistics,
                   T* d_x, bool accumulate, float* d_gain, float* d_bias, std::int64_t rows,
                   std::int64_t width, void* workspace, cudaStream_t stream);

}  // namespace scone::cuda
