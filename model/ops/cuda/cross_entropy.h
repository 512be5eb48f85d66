#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace scone::cuda {

// Backend::cross_entropy and its form with the classes cut over ranks. T: float or __nv_bfloat16;
// logits: [rows, classes], their rows need no alignment. targets: [rows]. Statistics and losses are
// fp32; fp32 logits are never in memory where T is bf16. All device memory. Throw CudaError.

/// logits: [rows, columns], of which `used` are classes; losses: [rows].
template <class T>
void cross_entropy(T* logits, const std::int32_t* targets, std::int64_t used, float* losses,
                   bool with_gradient, float gradient_scale, std::int64_t rows,
                   std::int64_t columns, cudaStream_t stream);

/// statistics: [rows, 3].
template <class T>
void cross_entropy_part(const T* logits, const std::int32_t* targets, std::int64_t first_class,
                        std::int64_t used, float* statistics, std::int64_t rows,
                        std::int64_t classes, cudaStream_t stream);

/// all_statistics: [parts, rows, 3].
template <class T>
void cross_entropy_join(T* logits, const std::int32_t* targets, std::int64_t first_class,
                        std::int64_t used, const float* all_statistics, std::int64_t parts,
                        float* losses, bool with_gradient, float gradient_scale, std::int64_t rows,
                        std::int64_t classes, cudaStream_t stream);

}  // namespace scone::cuda
