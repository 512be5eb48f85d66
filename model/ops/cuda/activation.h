#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace scone::cuda {

// The activations of Backend, over `elements` elements. T: float or __nv_bfloat16, computed in
// fp32. Device memory of any alignment. d_x may be d_y, d_up may be d_y. Throw CudaError.

template <class T>
void gelu(const T* x, T* y, std::int64_t elements, cudaStream_t stream);
template <class T>
void gelu_backward(const T* d_y, const T* x, T* d_x, std::int64_t elements, cudaStream_t stream);
template <class T>
void swiglu(const T* gate, const T* up, T* y, std::int64_t elements, cudaStream_t stream);
template <class T>
void swiglu_backward(const T* d_y, const T* gate, const T* up, T* d_gate, T* d_up,
                     std::int64_t elements, cudaStream_t stream);

}  // namespace scone::cuda
