// Large matrix products by tiles. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#undef SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#else
#define SCONE_MODEL_OPS_CPU_MATRIX_PRODUCT_H
#endif

#include <hwy/highway.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "model/ops/cpu/instruction_set.h"
#include "model/ops/cpu/packing.h"
#include "model/ops/cpu/panel_product.h"
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

/// What takes the tiles of a product. One that has sums(row, column) and sums_stride() adds to
/// floats there: its tiles are not made, the product is.
template <class Store>
concept AddsToSums = requires(const Store& store) {
  store.sums(0, 0);
  store.sums_stride();
};

/// A product of factors stored as T and multiplied as P, by Goto and van de Geijn's loops: parts of
/// the factors are packed in turn, stay in cache, and all threads work on them. An element's
/// products are summed in one order, whatever the tiles and threads.
template <class T, class P, class Store>
class ProductLoop {
 public:
  ProductLoop(const Factor<T>& a, const Factor<T>& b, std::int64_t m, std::int64_t n,
              std::int64_t k, const Store& store)
      : a_(a), b_(b), m_(m), n_(n), k_(k), store_(store) {}

  void run() {
    static thread_local Scratch scratch_a, scratch_b, scratch_sums;
    constexpr std::int64_t kWorthThreads = 1 << 20;  // products
    const bool has_threads = m_ * n_ * k_ >= kWorthThreads;
    choose_tile(has_threads ? omp_get_max_threads() : 1);
    const std::int64_t most_rows = std::min(m_, kPartRows), most_inner = std::min(k_, kPartInner);
    const std::int64_t most_columns = std::min(n_, part_columns());
    packs_a_ = a_.transposed || !std::is_same_v<T, P> || k_ % kElements != 0;
    adds_to_sums_ = AddsToSums<Store> && n_ % kLanes == 0;
    packed_b_ = scratch_b.get<P>(packed_elements<P>(most_inner, most_columns));
    // A tile packs its own rows where no other tile needs them.
    if (packs_a_ && n_ > tile_columns_)
      packed_a_ = scratch_a.get<P>(padded(most_rows, kRowGroup) * padded(most_inner, kElements));
    if (k_ > kPartInner && !adds_to_sums_)
      sums_ = scratch_sums.get<float>(most_rows * padded(most_columns, kPanelColumns));
#pragma omp parallel if (has_threads)
    all_parts();
  }

 private:
  static constexpr std::int64_t kElements = kWordElements<P>;
  static constexpr std::int64_t kTileRows = 256, kTileColumns = 384, kTilesOfThread = 8;
  static constexpr std::int64_t kPartRows = 2048, kPartInner = 4096;
  static constexpr std::int64_t kPartBytes = 8 << 20;  // of B, that all tiles of a part read

  /// Rows of A, columns of B, and inner indices from `begin`, that are multiplied together.
  struct Part {
    std::int64_t row, rows, column, columns, begin, inner;
    std::int64_t words() const { return words_of<P>(inner); }
    std::int64_t panel_elements() const { return packed_elements<P>(inner, kPanelColumns); }
  };

  /// Tiles of about equal width, and where they are few smaller ones, so that threads end together.
  void choose_tile(std::int64_t threads) {
    tile_columns_ = padded(blocks_of(n_, blocks_of(n_, kTileColumns)), kPanelColumns);
    const auto too_few = [&] {
      return blocks_of(m_, tile_rows_) * blocks_of(n_, tile_columns_) < kTilesOfThread * threads;
    };
    while (too_few()) {
      if (tile_columns_ > 2 * tile_rows_ && tile_columns_ > kPanelColumns)
        tile_columns_ = padded(tile_columns_ / 2, kPanelColumns);
      else if (tile_rows_ > kRowGroup)
        tile_rows_ /= 2;
      else
        break;
    }
  }
  std::int64_t part_columns() const {
    const std::int64_t inner = std::min(k_, kPartInner);
    const std::int64_t most = kPartBytes / (inner * static_cast<std::int64_t>(sizeof(P)));
    return std::max<std::int64_t>(1, most / tile_columns_) * tile_columns_;
  }

  /// By all threads of a region together.
  void all_parts() const {
    for (std::int64_t column = 0; column < n_; column += part_columns())
      for (std::int64_t row = 0; row < m_; row += kPartRows)
        for (std::int64_t begin = 0; begin < k_; begin += kPartInner)
          multiply({row, std::min(kPartRows, m_ - row), column,
                    std::min(part_columns(), n_ - column), begin,
                    std::min(kPartInner, k_ - begin)});
  }

  void multiply(const Part& part) const {
    if (part.row == 0 || k_ > kPartInner) {
#pragma omp for schedule(static)
      for (std::int64_t panel = 0; panel < blocks_of(part.columns, kPanelColumns); ++panel)
        pack_panel(part, panel);
    }
    if (packed_a_ != nullptr) {
      constexpr std::int64_t kRows = 4 * kRowGroup;
#pragma omp for schedule(static)
      for (std::int64_t block = 0; block < blocks_of(part.rows, kRows); ++block)
        pack_left(part, block * kRows, std::min(kRows, part.rows - block * kRows),
                  packed_a_ + block * kRows * part.words() * kElements);
    }
    const std::int64_t row_tiles = blocks_of(part.rows, tile_rows_);
    const std::int64_t column_tiles = blocks_of(part.columns, tile_columns_);
#pragma omp for collapse(2) schedule(dynamic)
    for (std::int64_t column_tile = 0; column_tile < column_tiles; ++column_tile)
      for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile)
        tile(part, row_tile * tile_rows_, column_tile * tile_columns_);
  }

  void pack_panel(const Part& part, std::int64_t panel) const {
    const std::int64_t column = part.column + panel * kPanelColumns;
    const std::int64_t columns = std::min(kPanelColumns, part.column + part.columns - column);
    P* to = packed_b_ + panel * part.panel_elements();
    if (b_.transposed)
      pack_columns<P>(b_.data + column * b_.stride + part.begin, b_.stride, part.inner, columns,
                      to);
    else
      pack_rows<P>(b_.data + part.begin * b_.stride + column, b_.stride, part.inner, columns, to);
  }

  /// Rows [row, row + rows) of a part, packed; row begins a group.
  LeftRows<P> pack_left(const Part& part, std::int64_t row, std::int64_t rows, P* to) const {
    const std::int64_t at = part.row + row;
    if (a_.transposed)
      return pack_left_columns<P>(a_.data + part.begin * a_.stride + at, a_.stride, part.inner,
                                  rows, to);
    convert_rows<P>(a_.data + at * a_.stride + part.begin, a_.stride, rows, part.inner, to);
    return LeftRows<P>::plain(to, part.words() * kElements);
  }

  /// Rows [row, row + rows) of a part where they are, or packed by all threads or this one.
  LeftRows<P> left_of(const Part& part, std::int64_t row, std::int64_t rows) const {
    static thread_local Scratch scratch;
    const std::int64_t stride = part.words() * kElements;
    if (packs_a_ && packed_a_ == nullptr)
      return pack_left(part, row, rows, scratch.get<P>(padded(rows, kRowGroup) * stride));
    if (a_.transposed) return LeftRows<P>::packed(packed_a_, part.words()).from(row, 0);
    if (packs_a_) return LeftRows<P>::plain(packed_a_ + row * stride, stride);
    if constexpr (std::is_same_v<T, P>)
      return LeftRows<P>::plain(a_.data + (part.row + row) * a_.stride + part.begin, a_.stride);
    else
      return {};
  }

  void tile(const Part& part, std::int64_t row, std::int64_t column) const {
    static thread_local Scratch tile_scratch;
    const std::int64_t columns = std::min(tile_columns_, part.columns - column);
    const std::int64_t rows = std::min(tile_rows_, part.rows - row);
    std::int64_t stride = padded(columns, kPanelColumns);
    float* values = nullptr;
    if constexpr (AddsToSums<Store>) {
      if (adds_to_sums_) {
        stride = store_.sums_stride();
        values = store_.sums(part.row + row, part.column + column);
      }
    }
    if (!adds_to_sums_)
      values = sums_ == nullptr ? tile_scratch.get<float>(tile_rows_ * tile_columns_)
                                : sums_ + column * part.rows + row * stride;
    const Panels<P> panels{packed_b_, part.panel_elements()};
    multiply_panels(left_of(part, row, rows), rows, panels.from(0, column), columns, part.words(),
                    values, stride, adds_to_sums_ || part.begin > 0);
    if (!adds_to_sums_ && part.begin + part.inner == k_)
      store_(ProductTile{part.row + row, part.column + column, rows, columns, values, stride});
  }

  Factor<T> a_, b_;
  std::int64_t m_, n_, k_;
  std::int64_t tile_rows_ = kTileRows, tile_columns_ = 0;
  bool packs_a_ = false, adds_to_sums_ = false;
  const Store& store_;
  P* packed_a_ = nullptr;  // rows of a part, for all its tiles
  P* packed_b_ = nullptr;  // panels of a part
  float* sums_ = nullptr;  // tiles of a part, where its product has parts over k
};

/// work(P{}), where P is what elements stored as T are multiplied as.
template <class T, class Work>
void with_product_type(const Work& work) {
#if SCONE_HAS_BF16_WORDS
  if constexpr (std::is_same_v<T, Bf16>) {
    if (has_bf16_products()) return work(Bf16{});
  }
#endif
  work(0.0F);
}

/// A B. A: [m, k]; B: [k, n]. store takes each ProductTile from the thread that made it, while it
/// is in cache, or has the product added (AddsToSums). Products are summed in fp32.
template <class T, class Store>
void matrix_product(const Factor<T>& a, const Factor<T>& b, std::int64_t m, std::int64_t n,
                    std::int64_t k, const Store& store) {
  if (m == 0 || n == 0 || k == 0) return;
  with_product_type<T>([&](auto element) HWY_ATTR {
    ProductLoop<T, decltype(element), Store>(a, b, m, n, k, store).run();
  });
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
