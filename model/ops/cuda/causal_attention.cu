#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "model/ops/cuda/causal_attention.h"
#include "model/ops/cuda/causal_attention_kernels.h"
#include "model/ops/cuda/head_elements.h"
#include "model/ops/cuda/kernel_tools.h"
#include "model/ops/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kPrepareThreads = 256, kLanesOfHead = 8;

/// Fills the workspace: delta = sum(out * d_out), and log_sum_exp times `unit`, by head. A group of
/// 8 lanes takes one head of one position, of which kPack elements are read at a time.
template <class T, int kPack>
__global__ void __launch_bounds__(kPrepareThreads)
    causal_attention_prepare(CausalTensors<T> tensors, CausalSizes sizes, std::int64_t sequences,
                             float unit) {
  const std::int64_t padded = tensors.workspace.tiles * kStartTile;
  const std::int64_t items = sequences * padded * sizes.heads;
  const std::int64_t groups = std::int64_t{gridDim.x} * (kPrepareThreads / kLanesOfHead);
  const int lane = static_cast<int>(threadIdx.x) % kLanesOfHead;
  std::int64_t item = (std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x) / kLanesOfHead;
  // Whole warps go round together, for their shuffles.
  for (std::int64_t round = 0; round < items; round += groups, item += groups) {
    const std::int64_t head = item % sizes.heads, position = item / sizes.heads % padded;
    const std::int64_t sequence = item / sizes.heads / padded;
    const std::int64_t row = sequence * sizes.length + position;
    const bool present = item < items && position < sizes.length;
    float sum = 0.0F;
    if (present) {
      const std::int64_t at = row * sizes.width + head * sizes.head_width;
      for (int i = lane * kPack; i < sizes.head_width; i += kLanesOfHead * kPack) {
        float out[kPack], d_out[kPack];
        load_elements<T, kPack>(out, tensors.out + at + i);
        load_elements<T, kPack>(d_out, tensors.d_out + at + i);
#pragma unroll
        for (int e = 0; e < kPack; ++e) sum = fmaf(out[e], d_out[e], sum);
      }
    }
#pragma unroll
    for (int offset = kLanesOfHead / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, offset);
    }
    if (lane == 0 && item < items) {
      const std::int64_t to = (sequence * sizes.heads + head) * padded + position;
      // Padding has weights exp(score - infinity) = 0.
      tensors.workspace.log_sum_exp[to] =
          present ? tensors.saved_log_sum_exp[row * sizes.heads + head] * unit : INFINITY;
      tensors.workspace.delta[to] = sum;
    }
  }
}

/// Fills workspace.first and .last; a warp takes a tile.
__global__ void __launch_bounds__(kPrepareThreads)
    causal_attention_start_ranges(const std::int32_t* start, CausalWorkspace workspace, int length,
                                  std::int64_t sequences) {
  constexpr int kWarps = kPrepareThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t items = sequences * workspace.tiles;
  const std::int64_t warp = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  for (std::int64_t item = warp; item < items; item += std::int64_t{gridDim.x} * kWarps) {
    const std::int64_t first_row = item / workspace.tiles * length;
    const int begin = static_cast<int>(item % workspace.tiles) * kStartTile;
    int low = INT_MAX, high = 0;
#pragma unroll
    for (int i = 0; i < kStartTile; i += 32) {
      const int position = begin + i + lane;
      if (position < length) {
        low = min(low, start[first_row + position]);
        high = max(high, start[first_row + position]);
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      low = min(low, __shfl_xor_sync(0xFFFFFFFFU, low, offset));
      high = max(high, __shfl_xor_sync(0xFFFFFFFFU, high, offset));
    }
    if (lane == 0) {
      workspace.first[item] = low;
      workspace.last[item] = high;
    }
  }
}

/// Blocks of kPrepareThreads for so many threads, at most so many that each goes round again.
std::int64_t blocks_for(std::int64_t threads) {
  return std::min((threads + kPrepareThreads - 1) / kPrepareThreads, std::int64_t{1} << 20);
}

template <class T>
bool on_tensor_cores(const CausalShape& shape) {
  return std::is_same_v<T, __nv_bfloat16> && has_tensor_core_kernels(shape.head_width);
}

}  // namespace

bool has_tensor_core_kernels(std::int64_t head_width) {
  return head_width == 32 || head_width == 64 || head_width == 96 || head_width == 128;
}

CausalSizes causal_sizes(const CausalShape& shape) {
  constexpr std::int64_t kMostLength = std::int64_t{1} << 30;
  const std::int64_t tiles = shape.length / kSmallestTile + 1;
  if (shape.length > kMostLength || shape.head_width > kMostLength ||
      shape.heads * shape.sequences > INT_MAX / tiles) {
    throw std::invalid_argument(
        "causal attention on CUDA: " + std::to_string(shape.sequences) + " sequences of " +
        std::to_string(shape.length) + " positions and " + std::to_string(shape.heads) +
        " heads are more blocks than a grid holds; use smaller microbatches");
  }
  return {shape.heads, shape.heads * shape.head_width, static_cast<int>(shape.length),
          static_cast<int>(shape.head_width),
          1.0F / std::sqrt(static_cast<float>(shape.head_width))};
}

CausalWorkspace causal_workspace(const CausalShape& shape, void* memory) {
  CausalWorkspace result;
  result.tiles = (shape.length + kStartTile - 1) / kStartTile;
  const std::int64_t values = shape.sequences * shape.heads * result.tiles * kStartTile;
  result.log_sum_exp = static_cast<float*>(memory);
  result.delta = result.log_sum_exp + values;
  result.first = reinterpret_cast<std::int32_t*>(result.delta + values);
  result.last = result.first + shape.sequences * result.tiles;
  return result;
}

std::int64_t causal_attention_backward_workspace_bytes(const CausalShape& shape) {
  const std::int64_t tiles = (shape.length + kStartTile - 1) / kStartTile;
  return 4 * 2 * shape.sequences * tiles * (shape.heads * kStartTile + 1);
}

template <class T>
void causal_attention(const CausalShape& shape, const T* qkv, const std::int32_t* attention_start,
                      T* out, float* log_sum_exp, cudaStream_t stream) {
  if (shape.sequences * shape.length * shape.heads * shape.head_width == 0) return;
  CausalTensors<T> tensors;
  tensors.qkv = qkv;
  tensors.start = attention_start;
  tensors.out = out;
  tensors.log_sum_exp = log_sum_exp;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (on_tensor_cores<T>(shape)) {
      return causal_attention_on_tensor_cores(shape, tensors, stream);
    }
  }
  causal_attention_general(shape, tensors, stream);
}

template <class T>
void causal_attention_backward(const CausalShape& shape, const T* qkv,
                               const std::int32_t* attention_start, const T* out,
                               const float* log_sum_exp, const T* d_out, T* d_qkv, void* workspace,
                               cudaStream_t stream) {
  if (shape.sequences * shape.length * shape.heads * shape.head_width == 0) return;
  CausalTensors<T> tensors;
  tensors.qkv = qkv;
  tensors.start = attention_start;
  tensors.out = const_cast<T*>(out);  // read only
  tensors.saved_log_sum_exp = log_sum_exp;
  tensors.d_out = d_out;
  tensors.d_qkv = d_qkv;
  tensors.workspace = causal_workspace(shape, workspace);
  const CausalSizes sizes = causal_sizes(shape);

  constexpr int kPack = kElementsOf16Bytes<T>;
  const std::int64_t items =
      shape.sequences * tensors.workspace.tiles * kStartTile * shape.heads * kLanesOfHead;
  const LaunchShape prepare{blocks_for(items), kPrepareThreads};
  const float unit = on_tensor_cores<T>(shape) ? kLog2E : 1.0F;
  if (shape.head_width % kPack == 0) {
    SCONE_LAUNCH((causal_attention_prepare<T, kPack>), prepare, stream, tensors, sizes,
                 shape.sequences, unit);
  } else {
    SCONE_LAUNCH((causal_attention_prepare<T, 1>), prepare, stream, tensors, sizes, shape.sequences,
                 unit);
  }
  SCONE_LAUNCH(
      causal_attention_start_ranges,
      (LaunchShape{blocks_for(shape.sequences * tensors.workspace.tiles * 32), kPrepareThreads}),
      stream, attention_start, tensors.workspace, sizes.length, shape.sequences);
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (on_tensor_cores<T>(shape)) {
      return causal_attention_backward_on_tensor_cores(shape, tensors, stream);
    }
  }
  causal_attention_backward_general(shape, tensors, stream);
}

template void causal_attention(const CausalShape&, const float*, const std::int32_t*, float*,
                               float*, cudaStream_t);
template void causal_attention(const CausalShape&, const __nv_bfloat16*, const std::int32_t*,
                               __nv_bfloat16*, float*, cudaStream_t);
template void causal_attention_backward(const CausalShape&, const float*, const std::int32_t*,
                                        const float*, const float*, const float*, float*, void*,
                                        cudaStream_t);
template void causal_attention_backward(const CausalShape&, const __nv_bfloat16*,
                                        const std::int32_t*, const __nv_bfloat16*, const float*,
                                        const __nv_bfloat16*, __nv_bfloat16*, void*, cudaStream_t);

}  // namespace scone::cuda
