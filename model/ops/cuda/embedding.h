#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "model/model_config.h"

namespace scone::cuda {

// T: float or __nv_bfloat16. Device memory of any alignment. Throw CudaError.

/// EmbeddingInput by pointers, each [count]. positions is unread without position embedding;
/// row_of_position may be null.
struct EmbeddingIndices {
  const std::int32_t* tokens;
  const std::int32_t* positions;
  const std::int32_t* row_of_position;
  CombineKind combine;
};

/// Backend::embed. position_embedding may be null; rows is fp32; out: [count, width].
template <class T>
void embed(const EmbeddingIndices& indices, const T* token_embedding, const T* position_embedding,
           const float* rows, T* out, std::int64_t count, std::int64_t width, cudaStream_t stream);

/// The gradients that embed_backward adds to, with their numbers of rows. positions and rows may be
/// null; rows is unread where there is no row_of_position.
struct EmbeddingGradients {
  float* tokens;
  std::int64_t vocabulary;
  float* positions;
  std::int64_t context;
  float* rows;
  std::int64_t row_count;
};

/// Bytes of workspace that embed_backward needs, aligned to 16. count < 2^29, and vocabulary,
/// context and row_count together < 2^31.
std::int64_t embed_backward_workspace_bytes(const EmbeddingIndices& indices,
                                            const EmbeddingGradients& gradients, std::int64_t count,
                                            std::int64_t width);

/// Backend::embed_backward. Each row's gradients are added in an order fixed by the indices alone;
/// it is as fast where all positions are of one token as where they are of different ones.
template <class T>
void embed_backward(const EmbeddingIndices& indices, const T* d_out,
                    const EmbeddingGradients& gradients, std::int64_t count, std::int64_t width,
                    void* workspace, cudaStream_t stream);

}  // namespace scone::cuda
