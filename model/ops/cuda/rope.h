#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace scone::cuda {

/// Backend::rope, in place. qkv: [rows, 3 heads head_width] of T (float or __nv_bfloat16);
/// positions: [rows]. Angles are taken in double and rotations in fp32. Device memory of any
/// alignment. Throws CudaError.
template <class T>
void rope(T* qkv, const std::int32_t* positions, std::int64_t heads, std::int64_t head_width,
          bool inverse, std::int64_t rows, cudaStream_t stream);

}  // namespace scone::cuda
