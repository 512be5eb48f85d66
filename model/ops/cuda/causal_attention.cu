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
#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/device.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kPrepareThreads = 256, kLanesOfHead = 8;

/// Fills workspace.statistics, log_sum_exp times `unit`. A group of 8 lanes takes one head of one
/// position, of which kPack elements are read at a time.
template <class T, int kPack>
__global__ void __launch_bounds__(kPrepareThreads)
    causal_attention_prepare(CausalTensors<T> tensors, CausalSizes sizes, std::int64_t sequences,
                             float unit) {
  const auto tiles = static_cast<unsigned>(tensors.workspace.tiles);
  const auto heads = static_cast<unsigned>(sizes.heads);
  const unsigned padded = tiles * kStartTile;
  const std::int64_t items = sequences * padded * heads;
  const std::int64_t groups = std::int64_t{gridDim.x} * (kPrepareThreads / kLanesOfHead);
  const int lane = static_cast<int>(threadIdx.x) % kLanesOfHead;
  std::int64_t item = (std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x) / kLanesOfHead;
  // Whole warps go round together, for their shuffles.
  for (std::int64_t round = 0; round < items; round += groups, item += groups) {
    const unsigned place = static_cast<unsigned>(item) / heads;  // items are fewer than 2^32
    const unsigned head = static_cast<unsigned>(item) % heads;
    const unsigned position = place % padded, sequence = place / padded;
    const std::int64_t row = std::int64_t{sequence} * sizes.length + position;
    const bool present = item < items && position < static_cast<unsigned>(sizes.length);
    float sum = 0.0F;
    if (present) {
      const std::int64_t at = row * sizes.width + std::int64_t{head} * sizes.head_width;
      for (int i = lane * kPack; i < sizes.head_width; i += kLanesOfHead * kPack) {
        float out[kPack], d_out[kPack];
        load_floats<T, kPack>(tensors.out + at + i, out);
        load_floats<T, kPack>(tensors.d_out + at + i, d_out);
#pragma unroll
        for (int e = 0; e < kPack; ++e) sum = fmaf(out[e], d_out[e], sum);
      }
    }
#pragma unroll
    for (int offset = kLanesOfHead / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, offset);
    }
    if (lane == 0 && item < items) {
      float* const to = tensors.workspace.statistics +
                        (std::int64_t{sequence} * heads + head) * tiles * 2 * kStartTile +
                        statistics_offset(static_cast<int>(position));
      // Padding has weights exp(score - infinity) = 0.
      to[0] = present ? tensors.saved_log_sum_exp[row * heads + head] * unit : INFINITY;
      to[kStartTile] = sum;
    }
  }
}

/// Fills workspace.ranges; a warp takes a tile.
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
      workspace.ranges[2 * item] = low;
      workspace.ranges[2 * item + 1] = high;
    }
  }
}

/// Blocks of kPrepareThreads for so many threads, at most so many that each goes round again.
std::int64_t blocks_for(std::int64_t threads) {
  return std::min(divide_up(threads, kPrepareThreads), kMostBlocks);
}

template <class T>
bool on_tensor_cores(const CausalShape& shape) {
  return std::is_same_v<T, __nv_bfloat16> &&
         has_tensor_core_kernels(shape.head_width, cuda_device().shared_memory_per_block());
}

}  // namespace

bool has_tensor_core_kernels(std::int64_t head_width, std::size_t shared_bytes) {
  const bool is_built =
      head_width == 32 || head_width == 64 || head_width == 96 || head_width == 128;
  return is_built && tensor_core_shared_bytes(head_width) <= shared_bytes;
}

CausalSizes causal_sizes(const CausalShape& shape) {
  constexpr std::int64_t kMostLength = std::int64_t{1} << 30, kMostItems = std::int64_t{1} << 31;
  // Kernels count heads of positions, and blocks, in 32 bits.
  if (shape.length > kMostLength || shape.head_width > kMostLength ||
      shape.heads * shape.sequences > kMostItems / (shape.length + kStartTile)) {
    throw std::invalid_argument("causal attention on CUDA: " + std::to_string(shape.sequences) +
                                " sequences of " + std::to_string(shape.length) +
                                " positions and " + std::to_string(shape.heads) +
                                " heads are more than kernels count; use smaller microbatches");
  }
  return {shape.heads, shape.heads * shape.head_width, static_cast<int>(shape.length),
          static_cast<int>(shape.head_width),
          1.0F / std::sqrt(static_cast<float>(shape.head_width))};
}

std::int64_t causal_attention_backward_workspace_bytes(const CausalShape& shape) {
  const std::int64_t tiles = divide_up(shape.length, kStartTile);
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
  tensors.workspace.tiles = divide_up(shape.length, kStartTile);
  tensors.workspace.statistics = static_cast<float*>(workspace);
  tensors.workspace.ranges = reinterpret_cast<std::int32_t*>(
      tensors.workspace.statistics +
      shape.sequences * shape.heads * tensors.workspace.tiles * 2 * kStartTile);
  const CausalSizes sizes = causal_sizes(shape);

  constexpr int kPack = Pack<T>::kSize;
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
