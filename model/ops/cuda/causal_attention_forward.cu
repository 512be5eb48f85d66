// Causal attention on tensor cores, forward: FlashAttention-2 (Dao, arXiv 2307.08691).

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <climits>

#include "model/ops/cuda/attention_tiles.h"
#include "model/ops/cuda/causal_attention_kernels.h"
#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

using Bf16 = __nv_bfloat16;

/// Smallest and largest value over the lanes of a warp.
__device__ __forceinline__ void spread_range(int& low, int& high) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    low = min(low, __shfl_xor_sync(0xFFFFFFFFU, low, offset));
    high = max(high, __shfl_xor_sync(0xFFFFFFFFU, high, offset));
  }
}

/// Sum over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float sum_of_row(float value) {
  value += __shfl_xor_sync(0xFFFFFFFFU, value, 1);
  return value + __shfl_xor_sync(0xFFFFFFFFU, value, 2);
}

__device__ __forceinline__ float maximum_of_row(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFU, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xFFFFFFFFU, value, 2));
}

/// Forward: a block takes 128 queries, a warp 32 of them, against tiles of 64 keys (32 of wide
/// heads, so that the accumulators fit registers). Keys and values come through two buffers.
template <int kWidth>
struct Forward {
  static constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = 2 * 16,
                       kQueries = kRows * kWarps;
  static constexpr int kKeys = kWidth <= 96 ? 64 : 32;
};

/// Scores of keys that a query does not see become -infinity.
template <int kColumns>
__device__ __forceinline__ void mask_scores(float (&s)[2][kColumns][4], int row_begin,
                                            int key_begin, const std::int32_t* start, int length) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int row = row_begin + 16 * m + g + 8 * below, low = start[min(row, length - 1)];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = key_begin + 8 * n + 2 * t + i;
          if (key > row || key < low) s[m][n][2 * below + i] = -INFINITY;
        }
      }
    }
  }
}

/// Weights are 2^(scale * score - base). A base need not be the largest exponent so far, only so
/// near that nothing overflows: sums and outputs so far are scaled anew only where the largest
/// exponent has risen by more than kSlack, which is rare after the first tiles.
template <int kWidth, int kColumns>
__device__ __forceinline__ void raise_bases(const float (&s)[2][kColumns][4], float scale,
                                            float (&base)[2][2], float (&sum)[2][2],
                                            float (&o)[2][kWidth / 8][4]) {
  constexpr float kSlack = 8.0F;
  float highest[2][2];
  bool rise = false;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      float most = -INFINITY;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        most = fmaxf(most, fmaxf(s[m][n][2 * below], s[m][n][2 * below + 1]));
      }
      highest[m][below] = maximum_of_row(most) * scale;
      rise = rise || highest[m][below] > base[m][below] + kSlack;
    }
  }
  if (!__any_sync(0xFFFFFFFFU, rise)) return;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      if (!(highest[m][below] > base[m][below])) continue;
      const float factor = exp2_approximate(base[m][below] - highest[m][below]);
      base[m][below] = highest[m][below];
      sum[m][below] *= factor;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        o[m][n][2 * below] *= factor;
        o[m][n][2 * below + 1] *= factor;
      }
    }
  }
}

/// Scores become weights, which are added to their rows' sums (of this lane's columns).
template <int kColumns>
__device__ __forceinline__ void exponentials(float (&s)[2][kColumns][4], float scale,
                                             const float (&base)[2][2], float (&sum)[2][2]) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      // A row that has seen no key yet: any finite base keeps infinities apart.
      const float finite_base = base[m][below] == -INFINITY ? 0.0F : base[m][below];
      float part = 0.0F;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 2 * below; i < 2 * below + 2; ++i) {
          s[m][n][i] = exp2_approximate(fmaf(s[m][n][i], scale, -finite_base));
          part += s[m][n][i];
        }
      }
      sum[m][below] += part;
    }
  }
}

template <int kWidth>
__global__ void __launch_bounds__(Forward<kWidth>::kThreads, 2)
    causal_attention_forward(CausalTensors<Bf16> tensors, CausalSizes sizes, int tiles) {
  using Shape = Forward<kWidth>;
  constexpr int kKeys = Shape::kKeys;
  Bf16* const q_tile = dynamic_shared<Bf16>();
  Bf16* const k_tiles = q_tile + Shape::kQueries * kWidth;
  Bf16* const v_tiles = k_tiles + 2 * kKeys * kWidth;
  CausalPlace place = causal_place(sizes, tiles);
  place.tile = tiles - 1 - place.tile;  // the most work first
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, length = sizes.length;
  const int query_begin = place.tile * Shape::kQueries;
  const int query_end = min(query_begin + Shape::kQueries, length);
  const std::int64_t stride = 3 * sizes.width;
  const Bf16* const q = tensors.qkv + place.first_row * stride + place.head * kWidth;
  const std::int32_t* const start = tensors.start + place.first_row;

  load_tile<kWidth, Shape::kQueries, Shape::kThreads>(q_tile, q + query_begin * stride, stride,
                                                      query_end - query_begin);
  // The range of starts of the block and of this warp.
  const int row_begin = query_begin + warp * Shape::kRows;
  int low = INT_MAX, warp_low = INT_MAX, warp_high = 0;
#pragma unroll
  for (int i = 0; i < Shape::kWarps; ++i) {
    const int query = query_begin + 32 * i + lane;
    const int at = query < length ? start[query] : INT_MAX;
    low = min(low, at);
    if (i == warp) {
      warp_low = at;
      warp_high = query < length ? at : 0;
    }
  }
  spread_range(warp_low, warp_high);
  int unused = 0;
  spread_range(low, unused);
  float o[2][kWidth / 8][4] = {};
  float base[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
  float sum[2][2] = {};
  const float scale = sizes.scale * kLog2E;
  RowsOfA<kWidth, kWidth <= 64> rows[2];
  const int first = low / kKeys, last = (query_end - 1) / kKeys;
  const auto load = [&](int tile, int buffer) {
    const int begin = tile * kKeys, at = buffer * kKeys * kWidth;
    const Bf16* const k = q + begin * stride + sizes.width;
    load_tile<kWidth, kKeys, Shape::kThreads>(k_tiles + at, k, stride, length - begin);
    load_tile<kWidth, kKeys, Shape::kThreads>(v_tiles + at, k + sizes.width, stride,
                                              length - begin);
    copy_async_commit();
  };
  load(first, first % 2);
  copy_async_wait<0>();
  __syncthreads();
  rows[0].set(q_tile, warp * Shape::kRows);
  rows[1].set(q_tile, warp * Shape::kRows + 16);
  for (int tile = first; tile <= last; ++tile) {
    const int key_begin = tile * kKeys, buffer = tile % 2;
    if (tile < last) load(tile + 1, 1 - buffer);
    const bool active =  // some key is seen by some of the warp's queries
        row_begin < length && key_begin < row_begin + Shape::kRows && key_begin + kKeys > warp_low;
    if (active) {
      float s[2][kKeys / 8][4];
      multiply_by_rows(s, rows, k_tiles + buffer * kKeys * kWidth, 0);
      if (key_begin + kKeys > row_begin + 1 || key_begin < warp_high) {
        mask_scores(s, row_begin, key_begin, tensors.start + place.first_row, length);
      }
      raise_bases<kWidth>(s, scale, base, sum, o);
      exponentials(s, scale, base, sum);
      multiply_by_columns<kWidth>(o, s, v_tiles + buffer * kKeys * kWidth, 0);
    }
    copy_async_wait<0>();
    __syncthreads();  // the next tile is there, this one used up
  }

#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const int row = row_begin + 16 * m;
    float inverse[2];
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const float total = sum_of_row(sum[m][below]);
      inverse[below] = 1.0F / total;
      if (t == 0 && row + g + 8 * below < length) {
        tensors.log_sum_exp[(place.first_row + row + g + 8 * below) * sizes.heads + place.head] =
            base[m][below] * kLn2 + logf(total);
      }
    }
    // These rows of the queries' tile are this warp's alone.
    store_rows<kWidth>(o[m], inverse, q_tile, warp * Shape::kRows + 16 * m,
                       tensors.out + (place.first_row + row) * sizes.width + place.head * kWidth,
                       sizes.width, length - row);
  }
}

template <int kWidth>
void forward_of_width(const CausalShape& shape, const CausalTensors<Bf16>& tensors,
                      cudaStream_t stream) {
  using Shape = Forward<kWidth>;
  const std::int64_t tiles = (shape.length + Shape::kQueries - 1) / Shape::kQueries;
  const std::size_t bytes = std::size_t{2} * kWidth * (Shape::kQueries + 4 * Shape::kKeys);
  SCONE_LAUNCH(
      causal_attention_forward<kWidth>,
      (LaunchShape{tiles * shape.heads * shape.sequences, Forward<kWidth>::kThreads, bytes}),
      stream, tensors, causal_sizes(shape), static_cast<int>(tiles));
}

}  // namespace

void causal_attention_on_tensor_cores(const CausalShape& shape, const CausalTensors<Bf16>& tensors,
                                      cudaStream_t stream) {
  switch (shape.head_width) {
    case 32:
      return forward_of_width<32>(shape, tensors, stream);
    case 64:
      return forward_of_width<64>(shape, tensors, stream);
    case 96:
      return forward_of_width<96>(shape, tensors, stream);
    default:
      return forward_of_width<128>(shape, tensors, stream);
  }
}

}  // namespace scone::cuda
