#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace scone::cuda {

// Rows by index: source, target: [any, width]; index: [count]. Device memory of any alignment.
// Throw CudaError.

/// target[i] = source[index[i]].
void gather_rows(const float* source, const std::int32_t* index, float* target, std::int64_t count,
                 std::int64_t width, cudaStream_t stream);

/// target[index[i]] = source[i]; an index comes once.
void scatter_rows(const float* source, const std::int32_t* index, float* target, std::int64_t count,
                  std::int64_t width, cudaStream_t stream);

/// Bytes of workspace that scatter_add_rows needs, aligned to 16. count < 2^31.
std::int64_t scatter_add_rows_workspace_bytes(std::int64_t count);

/// target[index[i]] += source[i], in the order of i where an index comes several times.
/// target_rows: rows of target, more than any index. Meant for indices that come a few times: all
/// rows of one are added one after another.
void scatter_add_rows(const float* source, const std::int32_t* index, float* target,
                      std::int64_t target_rows, std::int64_t count, std::int64_t width,
                      void* workspace, cudaStream_t stream);

}  // namespace scone::cuda
