#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace scone::cuda {

// Device memory of any alignment. Throw CudaError.

/// y = x, rounded to the nearest where y is bf16.
void convert(const float* x, __nv_bfloat16* y, std::int64_t elements, cudaStream_t stream);
void convert(const __nv_bfloat16* x, float* y, std::int64_t elements, cudaStream_t stream);

/// y += x.
void add(const float* x, float* y, std::int64_t elements, cudaStream_t stream);

/// x[i] = value, for T float or __nv_bfloat16.
template <class T>
void fill(T* x, float value, std::int64_t elements, cudaStream_t stream);

/// y[i] += bias, for each row i; y: [rows, width].
template <class T>
void add_bias(const T* bias, T* y, std::int64_t rows, std::int64_t width, cudaStream_t stream);

/// sums[j] += sum of x[i][j] over the rows i, in fp32, in an order fixed by rows and width; x:
/// [rows, width].
template <class T>
void add_column_sums(const T* x, float* sums, std::int64_t rows, std::int64_t width,
                     cudaStream_t stream);

}  // namespace scone::cuda
