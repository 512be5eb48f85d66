#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "model/ops/ops.h"

namespace scone::cuda {

// What the two kinds of causal attention kernels share.

constexpr float kLog2E = 1.4426950408889634F, kLn2 = 0.6931471805599453F;

constexpr int kStartTile = 64;  // queries for which CausalWorkspace has their starts' range

/// The backward pass's workspace. Positions are padded to whole tiles of kStartTile.
struct CausalWorkspace {
  std::int64_t tiles = 0;  // of a sequence
  // [sequences, heads, tiles, 2, kStartTile]: log_sum_exp (padding: infinity), then delta =
  // sum(out * d_out) (padding: 0).
  float* statistics = nullptr;
  std::int32_t* ranges = nullptr;  // [sequences, tiles, 2], smallest and largest start of queries
};

/// Of the pair of a sequence and a head.
__device__ __forceinline__ const float* statistics_of(const CausalWorkspace& workspace,
                                                      std::int64_t pair) {
  return workspace.statistics + pair * workspace.tiles * 2 * kStartTile;
}

/// Where the log_sum_exp of a position is there; its delta lies kStartTile further.
__device__ __forceinline__ int statistics_offset(int position) {
  return position / kStartTile * 2 * kStartTile + position % kStartTile;
}

/// What a kernel works on; fields that it does not use may be null.
template <class T>
struct CausalTensors {
  const T* qkv = nullptr;
  const std::int32_t* start = nullptr;
  T* out = nullptr;
  float* log_sum_exp = nullptr;
  const float* saved_log_sum_exp = nullptr;  // the backward pass's
  const T* d_out = nullptr;
  T* d_qkv = nullptr;
  CausalWorkspace workspace;
};

/// Sizes as kernels take them.
struct CausalSizes {
  std::int64_t heads = 0, width = 0;  // width = heads * head_width
  int length = 0, head_width = 0;
  float scale = 0;  // of the scores
};

/// A block's sequence, head and tile; blocks of the same sequence and head follow each other.
struct CausalPlace {
  std::int64_t first_row = 0;  // of the sequence
  std::int64_t sequence = 0, head = 0;
  int tile = 0;
};

__device__ __forceinline__ CausalPlace causal_place(const CausalSizes& sizes, int tiles) {
  const std::int64_t block = blockIdx.x, pair = block / tiles;
  CausalPlace place;
  place.tile = static_cast<int>(block % tiles);
  place.sequence = pair / sizes.heads;
  place.head = pair % sizes.heads;
  place.first_row = place.sequence * sizes.length;
  return place;
}

/// Whether the kernels on tensor cores, forward and backward, take heads of this width on a device
/// whose blocks can have so many bytes of shared memory. Heads of 128 do not fit 8.6, 8.9 and 12.0.
bool has_tensor_core_kernels(std::int64_t head_width, std::size_t shared_bytes);
/// What the backward pass needs, which is more than the forward pass does.
std::size_t tensor_core_shared_bytes(std::int64_t head_width);

void causal_attention_on_tensor_cores(const CausalShape& shape,
                                      const CausalTensors<__nv_bfloat16>& tensors,
                                      cudaStream_t stream);
void causal_attention_backward_on_tensor_cores(const CausalShape& shape,
                                               const CausalTensors<__nv_bfloat16>& tensors,
                                               cudaStream_t stream);
template <class T>
void causal_attention_general(const CausalShape& shape, const CausalTensors<T>& tensors,
                              cudaStream_t stream);
template <class T>
void causal_attention_backward_general(const CausalShape& shape, const CausalTensors<T>& tensors,
                                       cudaStream_t stream);

/// Throws std::invalid_argument where the sizes are beyond what kernels count with.
CausalSizes causal_sizes(const CausalShape& shape);

}  // namespace scone::cuda
