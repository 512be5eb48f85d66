// Large matrix products by tiles. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#undef SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#else
#define SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/onednn.h"
#include "model/ops/cpu/packing.h"
#include "model/ops/cpu/scratch.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

/// A matrix, or the transpose of one, stored row by row.
template <class T>
struct Factor {
  const T* data;
  std::int64_t stride;  // elements between the rows that are stored
  bool transposed;
};

/// Where a tile of a product belongs, and its values: [rows, columns], `stride` apart.
struct ProductTile {
  std::int64_t row, column, rows, columns;
  const float* values;
  std::int64_t stride;
};

inline std::int64_t blocks_of(std::int64_t extent, std::int64_t block) {
  return (extent + block - 1) / block;
}

constexpr std::int64_t kTileRows = 128;

/// A B, in tiles of fixed places, so that results do not depend on the number of threads. A: [m, k];
/// B: [k, n]. store(ProductTile) takes each tile from the thread that made it, while it is in cache.
/// Products are summed in fp32. inner_varies: k is a number of rows, which changes from call to
/// call, and not a width of the model.
template <class Store>
void matrix_product(const Factor<float>& a, const Factor<float>& b, std::int64_t m, std::int64_t n,
                    std::int64_t k, bool /*inner_varies*/, const Store& store) {
  constexpr std::int64_t kTileColumns = 512;
  const std::int64_t row_tiles = blocks_of(m, kTileRows);
  const std::int64_t column_tiles = blocks_of(n, kTileColumns);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile) {
    for (std::int64_t column_tile = 0; column_tile < column_tiles; ++column_tile) {
      static thread_local Scratch scratch;
      const std::int64_t row = row_tile * kTileRows, column = column_tile * kTileColumns;
      const std::int64_t rows = std::min(kTileRows, m - row);
      const std::int64_t columns = std::min(kTileColumns, n - column);
      float* tile = scratch.get<float>(kTileRows * kTileColumns);
      gemm(a.transposed, b.transposed, rows, columns, k, 1.0F,
           a.data + (a.transposed ? row : row * a.stride), a.stride,
           b.data + (b.transposed ? column * b.stride : column), b.stride, 0.0F, tile, columns);
      store(ProductTile{row, column, rows, columns, tile, columns});
    }
  }
}

/// How far a sum over k goes in one oneDNN product from `done`. Lengths come from a small set where
/// k varies, because each has a kernel of its own.
inline std::int64_t inner_part(std::int64_t k, std::int64_t done, bool varies) {
  constexpr std::int64_t kMost = 2048;
  const std::int64_t left = k - done;
  if (left >= kMost) return kMost;
  if (!varies) return left;
  return left < kPackedRows ? left
                            : static_cast<std::int64_t>(
                                  std::bit_floor(static_cast<std::uint64_t>(left)));
}

inline std::int64_t padded(std::int64_t extent, std::int64_t multiple) {
  return blocks_of(extent, multiple) * multiple;
}

/// The bf16 product of packed operands. B is packed, and A where it is transposed, by parts that
/// stay in cache together.
template <class Store>
class PackedProductLoop {
 public:
  PackedProductLoop(const Factor<Bf16>& a, const Factor<Bf16>& b, std::int64_t m, std::int64_t n,
                    std::int64_t k, bool inner_varies, const Store& store)
      : a_(a), b_(b), m_(m), n_(n), k_(k), varies_(inner_varies), store_(store) {
    padded_k_ = padded(k, kPackedRows);
    const std::int64_t fitting = kPackedBytes / (2 * padded_k_);
    part_columns_ = std::min(padded(n, kTileColumns),
                             std::max(kTileColumns, fitting / kTileColumns * kTileColumns));
    part_rows_ = a.transposed ? std::min(padded(m, kTileRows),
                                         std::max(kTileRows, fitting / kTileRows * kTileRows))
                              : m;
  }

  void run() {
    static thread_local Scratch scratch_a, scratch_b;
    packed_b_ = scratch_b.get<Bf16>(part_columns_ * padded_k_);
    packed_a_ = a_.transposed ? scratch_a.get<Bf16>(part_rows_ * padded_k_) : nullptr;
#pragma omp parallel
    for (std::int64_t column = 0; column < n_; column += part_columns_) {
      const std::int64_t columns = std::min(part_columns_, n_ - column);
      const std::int64_t column_blocks = blocks_of(columns, kPackedColumns);
#pragma omp for schedule(static)
      for (std::int64_t block = 0; block < column_blocks; ++block)
        pack_columns(column, block * kPackedColumns, columns);
      for (std::int64_t row = 0; row < m_; row += part_rows_) {
        const std::int64_t rows = std::min(part_rows_, m_ - row);
        if (a_.transposed) {
          constexpr std::int64_t kRows = 32;  // a line of cache
#pragma omp for schedule(static)
          for (std::int64_t block = 0; block < blocks_of(rows, kRows); ++block)
            transpose_rows(a_.data + row + block * kRows, a_.stride,
                           std::min(kRows, rows - block * kRows), k_,
                           packed_a_ + block * kRows * padded_k_, padded_k_);
        }
        const std::int64_t row_tiles = blocks_of(rows, kTileRows);
        const std::int64_t column_tiles = blocks_of(columns, kTileColumns);
#pragma omp for collapse(2) schedule(dynamic)
        for (std::int64_t column_tile = 0; column_tile < column_tiles; ++column_tile)
          for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile)
            tile(row, row_tile * kTileRows, rows, column, column_tile * kTileColumns, columns);
      }
    }
  }

 private:
  static constexpr std::int64_t kTileColumns = 384;
  static constexpr std::int64_t kPackedBytes = std::int64_t{4} << 20;

  /// Where the packed part of B for the tile at `tile_column` begins; its parts over k follow one
  /// another.
  Bf16* packed_tile(std::int64_t tile_column) const { return packed_b_ + tile_column * padded_k_; }

  void pack_columns(std::int64_t part_column, std::int64_t at, std::int64_t columns) const {
    const std::int64_t tile_column = at / kTileColumns * kTileColumns;
    const std::int64_t tile_width =
        padded(std::min(kTileColumns, columns - tile_column), kPackedColumns);
    const std::int64_t width = std::min(kPackedColumns, columns - at);
    for (std::int64_t done = 0; done < k_;) {
      const std::int64_t part = inner_part(k_, done, varies_);
      const std::int64_t padded_part = padded(part, kPackedRows);
      Bf16* to = packed_tile(tile_column) + done * tile_width + (at - tile_column) * padded_part;
      for (std::int64_t row = 0; row < part; row += kPackedRows) {
        const std::int64_t rows = std::min(kPackedRows, part - row);
        if (b_.transposed)
          pack_transposed_block(b_.data + (part_column + at) * b_.stride + done + row, b_.stride,
                                rows, width, to);
        else
          pack_block(b_.data + (done + row) * b_.stride + part_column + at, b_.stride, rows, width,
                     to);
        to += kPackedRows * kPackedColumns;
      }
      done += part;
    }
  }

  void tile(std::int64_t part_row, std::int64_t row, std::int64_t rows, std::int64_t part_column,
            std::int64_t column, std::int64_t columns) const {
    static thread_local Scratch tile_scratch, rows_scratch;
    const std::int64_t width = std::min(kTileColumns, columns - column);
    const std::int64_t tile_width = padded(width, kPackedColumns);
    const std::int64_t height = std::min(kTileRows, rows - row);
    // Heights come from a small set, as lengths do.
    const auto tile_height = static_cast<std::int64_t>(
        std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(height, 16))));
    const Bf16* from = a_.transposed ? packed_a_ + row * padded_k_
                                     : a_.data + (part_row + row) * a_.stride;
    std::int64_t stride = a_.transposed ? padded_k_ : a_.stride;
    if (height < tile_height && !a_.transposed) {
      Bf16* copy = rows_scratch.get<Bf16>(tile_height * padded_k_);
      for (std::int64_t i = 0; i < height; ++i)
        std::memcpy(copy + i * padded_k_, from + i * stride, static_cast<std::size_t>(k_) * 2);
      std::memset(copy + height * padded_k_, 0,
                  static_cast<std::size_t>((tile_height - height) * padded_k_) * 2);
      from = copy;
      stride = padded_k_;
    }
    float* values = tile_scratch.get<float>(kTileRows * kTileColumns);
    for (std::int64_t done = 0; done < k_;) {
      const std::int64_t part = inner_part(k_, done, varies_);
      packed_product(from + done, stride, packed_tile(column) + done * tile_width, values,
                     tile_height, tile_width, part, done > 0);
      done += part;
    }
    store_(ProductTile{part_row + row, part_column + column, height, width, values, tile_width});
  }

  Factor<Bf16> a_, b_;
  std::int64_t m_, n_, k_;
  bool varies_;
  const Store& store_;
  std::int64_t padded_k_, part_columns_, part_rows_;
  Bf16* packed_a_ = nullptr;
  Bf16* packed_b_ = nullptr;
};

/// The stored elements of a factor of `rows` stored rows, as floats.
inline Factor<float> as_floats(const Factor<Bf16>& factor, std::int64_t rows, std::int64_t columns,
                               Scratch& scratch) {
  float* to = scratch.get<float>(rows * columns);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j)
      to[i * columns + j] = to_float(factor.data[i * factor.stride + j]);
  return {to, columns, factor.transposed};
}

template <class Store>
void matrix_product(const Factor<Bf16>& a, const Factor<Bf16>& b, std::int64_t m, std::int64_t n,
                    std::int64_t k, bool inner_varies, const Store& store) {
  if (m == 0 || n == 0 || k == 0) return;
  if (has_bf16_products()) {
    PackedProductLoop<Store>(a, b, m, n, k, inner_varies, store).run();
    return;
  }
  static thread_local Scratch scratch_a, scratch_b;
  const Factor<float> wide_a = as_floats(a, a.transposed ? k : m, a.transposed ? m : k, scratch_a);
  const Factor<float> wide_b = as_floats(b, b.transposed ? n : k, b.transposed ? k : n, scratch_b);
  matrix_product(wide_a, wide_b, m, n, k, inner_varies, store);
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
