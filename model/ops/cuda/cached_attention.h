#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace scone::cuda {

/// Backend::cached_attention. qkv: [rows, 3 width]; keys_values: [context, 2 width], of which rows
/// past .. past + rows - 1 are written; out: [rows, width]; width = heads * head_width. T: float or
/// __nv_bfloat16, all device memory. Limits of head_width as of trie_attention. Throws CudaError.
template <class T>
void cached_attention(const T* qkv, T* keys_values, std::int64_t past, std::int64_t heads,
                      std::int64_t head_width, T* out, std::int64_t rows, cudaStream_t stream);

}  // namespace scone::cuda
