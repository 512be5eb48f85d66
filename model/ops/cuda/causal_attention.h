#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "model/ops/ops.h"

namespace scone::cuda {

// T: float or __nv_bfloat16. Pointers are device memory, tensors laid out as by
// Backend::causal_attention; qkv, out, d_out and d_qkv aligned to 16 bytes. bf16 with heads of 32,
// 64, 96 or 128 runs on tensor cores, all else on a general kernel: no [length x length] tensor
// either way. Results depend on shapes and values alone. Throw CudaError, and
// std::invalid_argument where a head is too wide for the device's shared memory (general kernel:
// beyond 500).

/// qkv: [rows, 3 width]; attention_start: [rows]; out: [rows, width]; log_sum_exp: [rows, heads].
template <class T>
void causal_attention(const CausalShape& shape, const T* qkv, const std::int32_t* attention_start,
                      T* out, float* log_sum_exp, cudaStream_t stream);

/// Bytes of workspace that the backward pass needs, aligned to 16.
std::int64_t causal_attention_backward_workspace_bytes(const CausalShape& shape);

/// d_out: [rows, width]; d_qkv: [rows, 3 width], overwritten.
template <class T>
void causal_attention_backward(const CausalShape& shape, const T* qkv,
                               const std::int32_t* attention_start, const T* out,
                               const float* log_sum_exp, const T* d_out, T* d_qkv, void* workspace,
                               cudaStream_t stream);

}  // namespace scone::cuda
