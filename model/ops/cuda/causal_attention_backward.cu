// Causal attention on tensor cores, backward: FlashAttention-2 (Dao, arXiv 2307.08691), but with
// the gradients of queries in a kernel of their own, so that no sum depends on the order of blocks.

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

/// Backward: a warp owns 16 or 32 rows, of keys or of queries, and passes over tiles of 64 of the
/// others, 32 at a time so that scores and their gradients fit registers. Tiles come through two
/// buffers.
template <int kWidth>
struct Backward {
  static constexpr int kRows = kWidth <= 64 ? 2 : 1;  // of a warp, in units of 16
  static constexpr int kWarps = kWidth <= 64 ? 4 : 8, kThreads = 32 * kWarps;
  static constexpr int kOwned = 16 * kRows * kWarps, kTile = kStartTile, kPart = 32;
  static constexpr int kBlocks = kWidth <= 64 ? 2 : 1;  // on a multiprocessor
  static constexpr std::size_t kSharedBytes =
      std::size_t{2} * kWidth * (2 * kOwned + 4 * kTile) + 2 * 3 * kTile * 4;
};

/// First tile at or after `tile` with a query that sees keys before key_end; `tiles` if none.
__device__ __forceinline__ int next_query_tile(const std::int32_t* ranges, int tile, int tiles,
                                               int key_end) {
  while (tile < tiles && ranges[2 * tile] >= key_end) ++tile;
  return tile;
}

template <int kWidth>
__global__ void __launch_bounds__(Backward<kWidth>::kThreads, Backward<kWidth>::kBlocks)
    causal_attention_backward_keys(CausalTensors<Bf16> tensors, CausalSizes sizes, int blocks) {
  using Shape = Backward<kWidth>;
  constexpr int kTile = Shape::kTile, kOwned = Shape::kOwned, kPart = Shape::kPart;
  constexpr int kRows = Shape::kRows;
  Bf16* const k_tile = dynamic_shared<Bf16>();
  Bf16* const v_tile = k_tile + kOwned * kWidth;
  Bf16* const q_tiles = v_tile + kOwned * kWidth;
  Bf16* const d_out_tiles = q_tiles + 2 * kTile * kWidth;
  float* const statistics_tiles = reinterpret_cast<float*>(d_out_tiles + 2 * kTile * kWidth);
  std::int32_t* const starts_of = reinterpret_cast<std::int32_t*>(statistics_tiles + 4 * kTile);
  const CausalPlace place = causal_place(sizes, blocks);  // the most work first as it is
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, length = sizes.length;
  const int key_begin = place.tile * kOwned, own_begin = key_begin + 16 * kRows * warp;
  const std::int64_t stride = 3 * sizes.width, column = place.head * kWidth;
  const Bf16* const q = tensors.qkv + place.first_row * stride + column;
  const Bf16* const k = q + sizes.width;
  const Bf16* const d_out = tensors.d_out + place.first_row * sizes.width + column;
  const int tiles = static_cast<int>(tensors.workspace.tiles);
  const float* const statistics =
      statistics_of(tensors.workspace, place.sequence * sizes.heads + place.head);
  const std::int32_t* const ranges = tensors.workspace.ranges + place.sequence * tiles * 2;

  const auto load = [&](int tile, int buffer) {
    const int begin = tile * kTile;
    load_tile<kWidth, kTile, Shape::kThreads>(q_tiles + buffer * kTile * kWidth, q + begin * stride,
                                              stride, length - begin);
    load_tile<kWidth, kTile, Shape::kThreads>(d_out_tiles + buffer * kTile * kWidth,
                                              d_out + begin * sizes.width, sizes.width,
                                              length - begin);
    const int i = static_cast<int>(threadIdx.x);
    if (i < kTile / 2) {
      copy_async_16(statistics_tiles + buffer * 2 * kTile + 4 * i, statistics + 2 * begin + 4 * i,
                    true);
    }
    if (i < kTile) {  // rows of int32 need not be aligned to 16 bytes
      starts_of[buffer * kTile + i] =
          begin + i < length ? tensors.start[place.first_row + begin + i] : 0;
    }
  };

  load_tile<kWidth, kOwned, Shape::kThreads>(k_tile, k + key_begin * stride, stride,
                                             length - key_begin);
  load_tile<kWidth, kOwned, Shape::kThreads>(v_tile, k + sizes.width + key_begin * stride, stride,
                                             length - key_begin);
  int tile = next_query_tile(ranges, key_begin / kTile, tiles, key_begin + kOwned);
  if (tile < tiles) load(tile, 0);
  copy_async_commit();

  const float scale = sizes.scale * kLog2E;
  float d_k[kRows][kWidth / 8][4] = {}, d_v[kRows][kWidth / 8][4] = {};
  RowsOfA<kWidth, kWidth <= 32> k_rows[kRows], v_rows[kRows];
  for (int round = 0; tile < tiles; ++round) {
    const int next = next_query_tile(ranges, tile + 1, tiles, key_begin + kOwned);
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, the one before used up
    if (next < tiles) load(next, (round + 1) % 2);
    copy_async_commit();
    if (round == 0) {
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        k_rows[m].set(k_tile, 16 * (kRows * warp + m));
        v_rows[m].set(v_tile, 16 * (kRows * warp + m));
      }
    }
    const int query_begin = tile * kTile, buffer = round % 2;
    const Bf16* const q_tile = q_tiles + buffer * kTile * kWidth;
    const Bf16* const d_out_tile = d_out_tiles + buffer * kTile * kWidth;
    const bool masked =
        own_begin + 16 * kRows > query_begin + 1 || ranges[2 * tile + 1] > own_begin;
    if (own_begin < query_begin + kTile && own_begin < length) {
#pragma unroll 1
      for (int part = 0; part < kTile; part += kPart) {
        const float* const log_sum_exp = statistics_tiles + buffer * 2 * kTile + part;
        const float* const delta = log_sum_exp + kTile;
        const std::int32_t* const start = starts_of + buffer * kTile + part;
        float p[kRows][kPart / 8][4];
        multiply_by_rows(p, k_rows, q_tile, part);
#pragma unroll
        for (int n = 0; n < kPart / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int query = 8 * n + 2 * t + i;
#pragma unroll
            for (int row = 0; row < 2 * kRows; ++row) {  // of this lane, 8 apart
              float& weight = p[row / 2][n][row % 2 * 2 + i];
              weight = exp2_approximate(fmaf(weight, scale, -log_sum_exp[query]));
              const int key = own_begin + g + 8 * row;
              if (masked && (key > query_begin + part + query || key < start[query])) {
                weight = 0.0F;
              }
            }
          }
        }
        multiply_by_columns<kWidth>(d_v, p, d_out_tile, part);
        float d_p[kRows][kPart / 8][4];
        multiply_by_rows(d_p, v_rows, d_out_tile, part);
#pragma unroll
        for (int n = 0; n < kPart / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float delta_of_query = delta[8 * n + 2 * t + i % 2];
#pragma unroll
            for (int m = 0; m < kRows; ++m) {
              d_p[m][n][i] = p[m][n][i] * (d_p[m][n][i] - delta_of_query);
            }
          }
        }
        multiply_by_columns<kWidth>(d_k, d_p, q_tile, part);
      }
    }
    tile = next;
  }
  copy_async_wait<0>();
  __syncthreads();  // all rows of keys and values are there, also where no query saw them

  const float d_k_scale[2] = {sizes.scale, sizes.scale}, one[2] = {1.0F, 1.0F};
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const int row = own_begin + 16 * m, tile_row = 16 * (kRows * warp + m);
    Bf16* const target = tensors.d_qkv + (place.first_row + row) * stride + column + sizes.width;
    store_rows<kWidth>(d_k[m], d_k_scale, k_tile, tile_row, target, stride, length - row);
    store_rows<kWidth>(d_v[m], one, v_tile, tile_row, target + sizes.width, stride, length - row);
  }
}

template <int kWidth>
__global__ void __launch_bounds__(Backward<kWidth>::kThreads, Backward<kWidth>::kBlocks)
    causal_attention_backward_queries(CausalTensors<Bf16> tensors, CausalSizes sizes, int blocks) {
  using Shape = Backward<kWidth>;
  constexpr int kTile = Shape::kTile, kOwned = Shape::kOwned, kPart = Shape::kPart;
  constexpr int kRows = Shape::kRows;
  Bf16* const q_tile = dynamic_shared<Bf16>();
  Bf16* const d_out_tile = q_tile + kOwned * kWidth;
  Bf16* const k_tiles = d_out_tile + kOwned * kWidth;
  Bf16* const v_tiles = k_tiles + 2 * kTile * kWidth;
  CausalPlace place = causal_place(sizes, blocks);
  place.tile = blocks - 1 - place.tile;  // the most work first
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, length = sizes.length;
  const int query_begin = place.tile * kOwned, own_begin = query_begin + 16 * kRows * warp;
  const int query_end = min(query_begin + kOwned, length);
  const std::int64_t stride = 3 * sizes.width, column = place.head * kWidth;
  const Bf16* const q = tensors.qkv + place.first_row * stride + column;
  const Bf16* const k = q + sizes.width;
  const Bf16* const v = k + sizes.width;
  const int start_tiles = static_cast<int>(tensors.workspace.tiles);
  const float* const statistics =
      statistics_of(tensors.workspace, place.sequence * sizes.heads + place.head);

  const auto load = [&](int tile, int buffer) {
    const int begin = tile * kTile;
    load_tile<kWidth, kTile, Shape::kThreads>(k_tiles + buffer * kTile * kWidth, k + begin * stride,
                                              stride, length - begin);
    load_tile<kWidth, kTile, Shape::kThreads>(v_tiles + buffer * kTile * kWidth, v + begin * stride,
                                              stride, length - begin);
  };

  load_tile<kWidth, kOwned, Shape::kThreads>(q_tile, q + query_begin * stride, stride,
                                             length - query_begin);
  load_tile<kWidth, kOwned, Shape::kThreads>(
      d_out_tile, tensors.d_out + (place.first_row + query_begin) * sizes.width + column,
      sizes.width, length - query_begin);
  int low = INT_MAX, high = 0;
  for (int i = query_begin / kTile; i <= (query_end - 1) / kTile; ++i) {
    low = min(low, tensors.workspace.ranges[(place.sequence * start_tiles + i) * 2]);
    high = max(high, tensors.workspace.ranges[(place.sequence * start_tiles + i) * 2 + 1]);
  }
  const int first = low / kTile, last = (query_end - 1) / kTile;
  load(first, 0);
  copy_async_commit();

  float log_sum_exp[2 * kRows], delta[2 * kRows];  // of this lane's rows, 8 apart
#pragma unroll
  for (int i = 0; i < 2 * kRows; ++i) {
    const int row = min(own_begin + g + 8 * i, length - 1);
    log_sum_exp[i] = statistics[statistics_offset(row)];
    delta[i] = statistics[statistics_offset(row) + kTile];
  }
  const float scale = sizes.scale * kLog2E;
  float d_q[kRows][kWidth / 8][4] = {};
  RowsOfA<kWidth, kWidth <= 64> q_rows[kRows], d_out_rows[kRows];
  for (int tile = first; tile <= last; ++tile) {
    const int buffer = (tile - first) % 2, key_begin = tile * kTile;
    copy_async_wait<0>();
    __syncthreads();  // this tile is there, the one before used up
    if (tile < last) load(tile + 1, 1 - buffer);
    copy_async_commit();
    if (tile == first) {
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        q_rows[m].set(q_tile, 16 * (kRows * warp + m));
        d_out_rows[m].set(d_out_tile, 16 * (kRows * warp + m));
      }
    }
    const Bf16* const k_tile = k_tiles + buffer * kTile * kWidth;
    const Bf16* const v_tile = v_tiles + buffer * kTile * kWidth;
    const bool masked = key_begin + kTile > own_begin + 1 || key_begin < high;
    if (key_begin < own_begin + 16 * kRows && own_begin < length) {
#pragma unroll 1
      for (int part = 0; part < kTile; part += kPart) {
        float p[kRows][kPart / 8][4], d_p[kRows][kPart / 8][4];
        multiply_by_rows(p, q_rows, k_tile, part);
        multiply_by_rows(d_p, d_out_rows, v_tile, part);
#pragma unroll
        for (int i = 0; i < 2 * kRows; ++i) {
          const int row = own_begin + g + 8 * i;
          const int start = masked ? tensors.start[place.first_row + min(row, length - 1)] : 0;
#pragma unroll
          for (int n = 0; n < kPart / 8; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const int key = key_begin + part + 8 * n + 2 * t + j;
              const float score = p[i / 2][n][i % 2 * 2 + j];
              float& d_score = d_p[i / 2][n][i % 2 * 2 + j];
              const float weight = exp2_approximate(fmaf(score, scale, -log_sum_exp[i]));
              const bool seen = !masked || (key <= row && key >= start);
              d_score = seen ? weight * (d_score - delta[i]) : 0.0F;
            }
          }
        }
        multiply_by_columns<kWidth>(d_q, d_p, k_tile, part);
      }
    }
  }
  const float d_q_scale[2] = {sizes.scale, sizes.scale};
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const int row = own_begin + 16 * m;
    store_rows<kWidth>(d_q[m], d_q_scale, q_tile, 16 * (kRows * warp + m),
                       tensors.d_qkv + (place.first_row + row) * stride + column, stride,
                       length - row);
  }
}

template <int kWidth>
void backward_of_width(const CausalShape& shape, const CausalTensors<Bf16>& tensors,
                       cudaStream_t stream) {
  using Blocks = Backward<kWidth>;
  const std::int64_t blocks = (shape.length + Blocks::kOwned - 1) / Blocks::kOwned;
  const LaunchShape launch_shape{blocks * shape.heads * shape.sequences, Blocks::kThreads,
                                 Blocks::kSharedBytes};
  SCONE_LAUNCH(causal_attention_backward_keys<kWidth>, launch_shape, stream, tensors,
               causal_sizes(shape), static_cast<int>(blocks));
  SCONE_LAUNCH(causal_attention_backward_queries<kWidth>, launch_shape, stream, tensors,
               causal_sizes(shape), static_cast<int>(blocks));
}

}  // namespace

std::size_t tensor_core_shared_bytes(std::int64_t head_width) {
  switch (head_width) {
    case 32:
      return Backward<32>::kSharedBytes;
    case 64:
      return Backward<64>::kSharedBytes;
    case 96:
      return Backward<96>::kSharedBytes;
    default:
      return Backward<128>::kSharedBytes;
  }
}

void causal_attention_backward_on_tensor_cores(const CausalShape& shape,
                                               const CausalTensors<Bf16>& tensors,
                                               cudaStream_t stream) {
  switch (shape.head_width) {
    case 32:
      return backward_of_width<32>(shape, tensors, stream);
    case 64:
      return backward_of_width<64>(shape, tensors, stream);
    case 96:
      return backward_of_width<96>(shape, tensors, stream);
    default:
      return backward_of_width<128>(shape, tensors, stream);
  }
}

}  // namespace scone::cuda
