#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "model/ops/ops.h"

namespace scone::cuda {

// T: float or __nv_bfloat16. Pointers are device memory, tensors laid out as by
// Backend::trie_attention. Results depend on shapes and values alone. Throw CudaError, and
// std::invalid_argument where a head is too wide: beyond 512 elements, or 256 where its bytes are
// no multiple of 16 (all pointers are aligned to 16 where they are).

/// qkv: [nodes, 3 width]; parent: [nodes]; out: [nodes, width]; log_sum_exp: [nodes, heads].
template <class T>
void trie_attention(const TrieShape& shape, const T* qkv, const std::int32_t* parent, T* out,
                    float* log_sum_exp, cudaStream_t stream);

/// Bytes of workspace that the backward pass needs, aligned to 16.
std::int64_t trie_attention_backward_workspace_bytes(const TrieShape& shape);

/// d_out: [nodes, width]; d_qkv: [nodes, 3 width], overwritten. Fast where all nodes with very
/// many descendants are among the first 8 of their path, right for any forest.
template <class T>
void trie_attention_backward(const TrieShape& shape, const T* qkv, const std::int32_t* parent,
                             const T* out, const float* log_sum_exp, const T* d_out, T* d_qkv,
                             void* workspace, cudaStream_t stream);

}  // namespace scone::cuda
