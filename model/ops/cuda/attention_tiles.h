#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "model/ops/cuda/tensor_core.h"

namespace scone::cuda {

// Tiles of rows of one head in shared memory, kWidth bf16 each, laid out by tile_offset, and
// products of whole warps with them. Of a product [16 x 8 kColumns], accumulators are
// [kColumns][4], fragments as in tensor_core.h.

/// Begins to copy rows [0, kRows) of `source`, of which `present` exist; the others become zeros.
/// All kThreads threads of the block come here.
template <int kWidth, int kRows, int kThreads>
__device__ __forceinline__ void load_tile(__nv_bfloat16* tile, const __nv_bfloat16* source,
                                          std::int64_t stride, int present) {
  // Whole groups of 8 rows a step, so that a thread's place within a row stays the same.
  constexpr int kChunks = kWidth / 8, kStep = kThreads / kChunks / 8 * 8;
  static_assert(kStep > 0 && kRows % kStep == 0);
  const int place = static_cast<int>(threadIdx.x), row = place / kChunks, chunk = place % kChunks;
  if (kStep * kChunks < kThreads && row >= kStep) return;
  __nv_bfloat16* const target = tile + tile_offset<kWidth>(row, chunk);
  const __nv_bfloat16* from = source + (row < present ? row * stride + chunk * 8 : 0);
#pragma unroll
  for (int i = 0; i < kRows; i += kStep) {
    copy_async_16(target + i * kWidth, from, row + i < present);
    from += kStep * stride;
  }
}

/// A: rows [row, row + 16) and columns [16 k, 16 k + 16) of the tile.
template <int kWidth>
__device__ __forceinline__ void load_a(std::uint32_t (&a)[4], const __nv_bfloat16* tile, int row,
                                       int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrices(a, tile + tile_offset<kWidth>(row + lane % 16, 2 * k + lane / 16));
}

/// B for rows [row, row + 16) of the tile as columns: b[0], b[1] the first 8, b[2], b[3] the
/// others; summed over columns [16 k, 16 k + 16).
template <int kWidth>
__device__ __forceinline__ void load_b_of_rows(std::uint32_t (&b)[4], const __nv_bfloat16* tile,
                                               int row, int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrices(b,
                tile + tile_offset<kWidth>(row + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
}

/// B for columns [16 n, 16 n + 16) of the tile, summed over rows [row, row + 16).
template <int kWidth>
__device__ __forceinline__ void load_b_of_columns(std::uint32_t (&b)[4], const __nv_bfloat16* tile,
                                                  int row, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrices_transposed(b, tile + tile_offset<kWidth>(row + lane % 16, 2 * n + lane / 16));
}

/// 16 rows of a head as A: held in registers, or read from their tile each time.
template <int kWidth, bool kHeld>
class RowsOfA {
 public:
  /// To be called when the tile is there.
  __device__ __forceinline__ void set(const __nv_bfloat16* tile, int row) {
    tile_ = tile;
    row_ = row;
    if constexpr (kHeld) {
#pragma unroll
      for (int k = 0; k < kWidth / 16; ++k) load_a<kWidth>(held_[k], tile, row, k);
    }
  }
  __device__ __forceinline__ void get(std::uint32_t (&a)[4], int k) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held_[k][i];
    } else {
      load_a<kWidth>(a, tile_, row_, k);
    }
  }

 private:
  const __nv_bfloat16* tile_ = nullptr;
  int row_ = 0;
  std::uint32_t held_[kHeld ? kWidth / 16 : 1][4];
};

/// c[m] = A_m X^T where X is rows [row, row + 8 kColumns) of the tile.
template <int kWidth, int kTiles, int kColumns, bool kHeld>
__device__ __forceinline__ void multiply_by_rows(float (&c)[kTiles][kColumns][4],
                                                 const RowsOfA<kWidth, kHeld> (&rows)[kTiles],
                                                 const __nv_bfloat16* tile, int row) {
  static_assert(kColumns % 2 == 0);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0.0F;
    }
  }
#pragma unroll(kHeld ? kWidth / 16 : 2)
  for (int k = 0; k < kWidth / 16; ++k) {
    std::uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) rows[m].get(a[m], k);
#pragma unroll
    for (int n = 0; n < kColumns; n += 2) {
      std::uint32_t b[4];
      load_b_of_rows<kWidth>(b, tile, row + 8 * n, k);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        multiply_add(c[m][n], a[m], b[0], b[1]);
        multiply_add(c[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/// A of 16 columns of an accumulator, rounded to bf16.
__device__ __forceinline__ void fragment_of(std::uint32_t (&a)[4], const float (&left)[4],
                                            const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
}

/// c[m] += P_m X where X is rows [row, row + 8 kSummed) of the tile.
template <int kWidth, int kTiles, int kSummed>
__device__ __forceinline__ void multiply_by_columns(float (&c)[kTiles][kWidth / 8][4],
                                                    const float (&p)[kTiles][kSummed][4],
                                                    const __nv_bfloat16* tile, int row) {
  static_assert(kSummed % 2 == 0);
#pragma unroll
  for (int k = 0; k < kSummed; k += 2) {
    std::uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) fragment_of(a[m], p[m][k], p[m][k + 1]);
#pragma unroll
    for (int n = 0; n < kWidth / 8; n += 2) {
      std::uint32_t b[4];
      load_b_of_columns<kWidth>(b, tile, row + 8 * k, n / 2);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        multiply_add(c[m][n], a[m], b[0], b[1]);
        multiply_add(c[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/// Writes a warp's 16 rows, scaled by scale[0] (row g) and scale[1] (row g + 8), by way of rows
/// [row, row + 16) of a tile that no other warp uses any more. The first `present` rows exist.
template <int kWidth>
__device__ __forceinline__ void store_rows(const float (&c)[kWidth / 8][4], const float (&scale)[2],
                                           __nv_bfloat16* tile, int row, __nv_bfloat16* target,
                                           std::int64_t stride, int present) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      *reinterpret_cast<std::uint32_t*>(tile + tile_offset<kWidth>(row + g + 8 * below, n) +
                                        2 * t) =
          pack_bf16(c[n][2 * below] * scale[below], c[n][2 * below + 1] * scale[below]);
    }
  }
  __syncwarp();
  constexpr int kChunks = kWidth / 8;
#pragma unroll
  for (int i = 0; i < kChunks / 2; ++i) {
    const int place = i * 32 + lane, r = place / kChunks, chunk = place % kChunks;
    if (r < present) {
      *reinterpret_cast<uint4*>(target + r * stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile + tile_offset<kWidth>(row + r, chunk));
    }
  }
}

}  // namespace scone::cuda
