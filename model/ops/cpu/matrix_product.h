// Large matrix products by tiles. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#undef SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#else
#define SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/onednn.h"
#include "model/ops/cpu/packing.h"
#include "model/ops/cpu/scratch.h"

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

/// A B, in tiles of fixed places, so that results do not depend on the number of threads. A: [m,
/// k]; B: [k, n]. store(ProductTile) takes each tile from the thread that made it, while it is in
/// cache. Products are summed in fp32. inner_varies: k is a number of rows, which changes from call
/// to call, and not a width of the model.
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

inline std::int64_t padded(std::int64_t extent, std::int64_t multiple) {
  return blocks_of(extent, multiple) * multiple;
}

/// The bf16 product by oneDNN's kernels for packed operands (Goto and van de Geijn's three loops
/// around them): parts of both are packed in turn, stay in cache, and all threads work on them.
template <class Store>
class PackedProductLoop {
 public:
  PackedProductLoop(const Factor<Bf16>& a, const Factor<Bf16>& b, std::int64_t m, std::int64_t n,
                    std::int64_t k, bool inner_varies, const Store& store)
      : a_(a), b_(b), m_(m), n_(n), k_(k), varies_(inner_varies), store_(store) {}

  void run() {
    static thread_local Scratch scratch_a, scratch_b, scratch_sums;
    const std::int64_t most_rows = std::min(padded(m_, kTileRows), kPartRows);
    const std::int64_t most_columns = std::min(padded(n_, kTileColumns), kPartColumns);
    const std::int64_t longest = inner_part(0);
    const bool has_parts = longest < k_;
    packs_a_ = a_.transposed || a_.stride != k_ || has_parts;
    packed_b_ = scratch_b.get<Bf16>(most_columns * padded(longest, kPackedRows));
    if (packs_a_) packed_a_ = scratch_a.get<Bf16>(most_rows * longest);
    if (has_parts) sums_ = scratch_sums.get<float>(most_rows * most_columns);
    const bool has_one_tile = m_ <= kTileRows && n_ <= kTileColumns && !has_parts;
#pragma omp parallel
    if (has_one_tile) {
#pragma omp single nowait
      only_tile();
    } else {
      all_tiles(has_parts);
    }
  }

 private:
  static constexpr std::int64_t kTileColumns = 384;
  static constexpr std::int64_t kPartColumns = 4 * kTileColumns;
  static constexpr std::int64_t kPartRows = 16 * kTileRows;

  /// Rows of A, columns of B, and inner indices from `begin`, that are multiplied together.
  struct Part {
    std::int64_t row, rows, column, columns, begin, inner;
  };

  /// How far a sum over k goes in one oneDNN product from `done`. Lengths come from a small set
  /// where k varies, because each has a kernel of its own. Sums as long as a vocabulary go by short
  /// parts, so that those of both factors stay in cache together.
  std::int64_t inner_part(std::int64_t done) const {
    constexpr std::int64_t kLong = 8192;
    const std::int64_t left = k_ - done, most = varies_ ? 2048 : k_ > kLong ? 1024 : 4096;
    if (left >= most) return most;
    if (!varies_ || left < kPackedRows) return left;
    return static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(left)));
  }

  /// By one thread: waiting for one another would cost threads more than it takes.
  void only_tile() const {
    const Part part{0, m_, 0, n_, 0, k_};
    for (std::int64_t at = 0; at < n_; at += kPackedColumns) pack_columns(part, at);
    if (packs_a_) pack_rows(part, 0, m_);
    tile(part, 0, 0);
  }

  /// By all threads of a parallel region together.
  void all_tiles(bool has_parts) const {
    for (std::int64_t column = 0; column < n_; column += kPartColumns) {
      for (std::int64_t row = 0; row < m_; row += kPartRows) {
        for (std::int64_t done = 0; done < k_;) {
          const Part part{row,    std::min(kPartRows, m_ - row),
                          column, std::min(kPartColumns, n_ - column),
                          done,   inner_part(done)};
          multiply(part, has_parts || row == 0);
          done += part.inner;
        }
      }
    }
  }
  /// By all threads of the region together.
  void multiply(const Part& part, bool packs_b) const {
    if (packs_b) {
#pragma omp for schedule(static)
      for (std::int64_t block = 0; block < blocks_of(part.columns, kPackedColumns); ++block)
        pack_columns(part, block * kPackedColumns);
    }
    if (packs_a_) {
      constexpr std::int64_t kRows = 32;  // a line of cache
#pragma omp for schedule(static)
      for (std::int64_t block = 0; block < blocks_of(part.rows, kRows); ++block)
        pack_rows(part, block * kRows, std::min(kRows, part.rows - block * kRows));
    }
    const std::int64_t row_tiles = blocks_of(part.rows, kTileRows);
    const std::int64_t column_tiles = blocks_of(part.columns, kTileColumns);
#pragma omp for collapse(2) schedule(dynamic)
    for (std::int64_t column_tile = 0; column_tile < column_tiles; ++column_tile)
      for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile)
        tile(part, row_tile * kTileRows, column_tile * kTileColumns);
  }

  /// The packed columns of a part's tile.
  Bf16* packed_tile(const Part& part, std::int64_t tile_column) const {
    return packed_b_ + tile_column * padded(part.inner, kPackedRows);
  }

  void pack_columns(const Part& part, std::int64_t at) const {
    const std::int64_t width = std::min(kPackedColumns, part.columns - at);
    Bf16* to = packed_tile(part, at);
    for (std::int64_t row = 0; row < part.inner; row += kPackedRows) {
      const std::int64_t rows = std::min(kPackedRows, part.inner - row);
      const std::int64_t from_row = part.begin + row, from_column = part.column + at;
      if (b_.transposed)
        pack_transposed_block(b_.data + from_column * b_.stride + from_row, b_.stride, rows, width,
                              to);
      else
        pack_block(b_.data + from_row * b_.stride + from_column, b_.stride, rows, width, to);
      to += kPackedRows * kPackedColumns;
    }
  }

  void pack_rows(const Part& part, std::int64_t at, std::int64_t rows) const {
    Bf16* to = packed_a_ + at * part.inner;
    if (a_.transposed) {
      transpose_rows(a_.data + part.begin * a_.stride + part.row + at, a_.stride, rows, part.inner,
                     to, part.inner);
      return;
    }
    for (std::int64_t i = 0; i < rows; ++i)
      std::memcpy(to + i * part.inner, a_.data + (part.row + at + i) * a_.stride + part.begin,
                  static_cast<std::size_t>(part.inner) * sizeof(Bf16));
  }

  void tile(const Part& part, std::int64_t row, std::int64_t column) const {
    static thread_local Scratch tile_scratch, rows_scratch;
    const std::int64_t width = std::min(kTileColumns, part.columns - column);
    const std::int64_t tile_width = padded(width, kPackedColumns);
    const std::int64_t height = std::min(kTileRows, part.rows - row);
    // Heights come from a small set, as lengths do.
    const auto tile_height = static_cast<std::int64_t>(
        std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(height, 16))));
    const Bf16* from = packs_a_ ? packed_a_ + row * part.inner : a_.data + (part.row + row) * k_;
    if (height < tile_height && !packs_a_) {  // rows that are not there must not be read
      Bf16* copy = rows_scratch.get<Bf16>(tile_height * k_);
      std::memcpy(copy, from, static_cast<std::size_t>(height * k_) * sizeof(Bf16));
      from = copy;
    }
    float* values = sums_ == nullptr
                        ? tile_scratch.get<float>(kTileRows * kTileColumns)
                        : sums_ + column * padded(part.rows, kTileRows) + row * tile_width;
    packed_product(from, packed_tile(part, column), values, tile_height, tile_width, part.inner,
                   part.begin > 0);
    if (part.begin + part.inner == k_)
      store_(ProductTile{part.row + row, part.column + column, height, width, values, tile_width});
  }

  Factor<Bf16> a_, b_;
  std::int64_t m_, n_, k_;
  bool varies_, packs_a_ = false;
  const Store& store_;
  Bf16* packed_a_ = nullptr;  // [rows, inner] of a part
  Bf16* packed_b_ = nullptr;
  float* sums_ = nullptr;  // tiles of a part, where its product has parts over k
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
