// Factors in the order that panel_product.h multiplies them in. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_PACKING_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_PACKING_H
#undef SCONE_MODEL_OPS_CPU_PACKING_H
#else
#define SCONE_MODEL_OPS_CPU_PACKING_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/panel_product.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

typedef std::uint32_t FourWords __attribute__((vector_size(16)));
typedef std::uint16_t FourHalves __attribute__((vector_size(8)));

/// The word of elements `low` and `high` of a factor stored as T and multiplied as P.
template <class P, class T>
inline std::uint32_t word_of(T low, T high) {
  if constexpr (std::is_same_v<P, float>)
    return std::bit_cast<std::uint32_t>(to_float(low));
  else
    return low.bits | static_cast<std::uint32_t>(high.bits) << 16;
}

inline void store_word(std::uint32_t word, void* to) { std::memcpy(to, &word, sizeof(word)); }

/// The words of `columns` columns, those of two rows or of one alone, and 0 up to kWidth.
template <class P, std::int64_t kWidth, class T>
inline void pack_word_row(const T* low, const T* high, std::int64_t columns, P* to) {
  constexpr std::int64_t kElements = kWordElements<P>;
  if (high != nullptr && columns == kWidth) {
#pragma omp simd
    for (std::int64_t j = 0; j < kWidth; ++j)
      store_word(word_of<P>(low[j], high[j]), to + j * kElements);
    return;
  }
  const std::int64_t whole = high == nullptr ? 0 : columns / kLanes * kLanes;
  for (std::int64_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (std::int64_t lane = 0; lane < kLanes; ++lane)
      store_word(word_of<P>(low[j + lane], high[j + lane]), to + (j + lane) * kElements);
  }
  for (std::int64_t j = whole; j < columns; ++j)
    store_word(word_of<P>(low[j], high == nullptr ? T{} : high[j]), to + j * kElements);
  std::fill(to + columns * kElements, to + kWidth * kElements, P{});
}

/// The second row of the word that begins with row k.
template <class P, class T>
inline const T* high_row(const T* from, std::int64_t stride, std::int64_t inner, std::int64_t k) {
  if (kWordElements<P> == 1) return from + k * stride;
  return k + 1 < inner ? from + (k + 1) * stride : nullptr;
}

/// [inner, columns], stored row by row, as a panel; columns beyond are 0.
template <class P, class T>
void pack_rows(const T* from, std::int64_t stride, std::int64_t inner, std::int64_t columns,
               P* to) {
  for (std::int64_t k = 0; k < inner; k += kWordElements<P>) {
    pack_word_row<P, kPanelColumns>(from + k * stride, high_row<P>(from, stride, inner, k), columns,
                                    to);
    to += kPanelColumns * kWordElements<P>;
  }
}

/// Four words that follow each other in a row.
template <class P, class T>
inline FourWords load_words(const T* from) {
  FourWords words;
  if constexpr (std::is_same_v<P, T>) {
    std::memcpy(&words, from, sizeof(words));
  } else {
    FourHalves halves;
    std::memcpy(&halves, from, sizeof(halves));
    words = __builtin_convertvector(halves, FourWords) << 16;
  }
  return words;
}

/// to[j][i] = from[i][j] for i, j < 4, of words; strides in elements of their types.
template <class T, class P>
inline void transpose_words(const T* from, std::int64_t from_stride, P* to,
                            std::int64_t to_stride) {
  FourWords row[4], half[4];
  for (int i = 0; i < 4; ++i) row[i] = load_words<P>(from + i * from_stride);
  for (int i = 0; i < 2; ++i) {
    half[i] = __builtin_shufflevector(row[2 * i], row[2 * i + 1], 0, 4, 1, 5);
    half[i + 2] = __builtin_shufflevector(row[2 * i], row[2 * i + 1], 2, 6, 3, 7);
  }
  const FourWords out[4] = {__builtin_shufflevector(half[0], half[1], 0, 1, 4, 5),
                            __builtin_shufflevector(half[0], half[1], 2, 3, 6, 7),
                            __builtin_shufflevector(half[2], half[3], 0, 1, 4, 5),
                            __builtin_shufflevector(half[2], half[3], 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &out[i], sizeof(FourWords));
}

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
constexpr std::int64_t kBlock = 16;
typedef std::uint32_t SixteenWords __attribute__((vector_size(64)));

/// to[j][i] = from[i][j] for i, j < 16.
template <class P>
inline void transpose_block(const P* from, std::int64_t from_stride, P* to,
                            std::int64_t to_stride) {
  SixteenWords row[16], pair[16], four[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&row[i], from + i * from_stride, sizeof(row[i]));
  for (int i = 0; i < 16; i += 2) {
    pair[i] = __builtin_shufflevector(row[i], row[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25,
                                      12, 28, 13, 29);
    pair[i + 1] = __builtin_shufflevector(row[i], row[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26,
                                          11, 27, 14, 30, 15, 31);
  }
  // four[i + c]: columns c, c + 4, c + 8, c + 12 of rows i .. i + 3.
  for (int i = 0; i < 16; i += 4) {
    for (int odd = 0; odd < 2; ++odd) {
      const SixteenWords &a = pair[i + odd], &b = pair[i + 2 + odd];
      four[i + 2 * odd] =
          __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      four[i + 2 * odd + 1] =
          __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  }
  for (int c = 0; c < 4; ++c) {
    for (int odd = 0; odd < 2; ++odd) {  // columns c + 4 odd, c + 4 odd + 8
      SixteenWords half[2];
      for (int h = 0; h < 2; ++h) {
        const SixteenWords &a = four[8 * h + c], &b = four[8 * h + 4 + c];
        half[h] = odd == 0 ? __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19,
                                                     24, 25, 26, 27)
                           : __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22,
                                                     23, 28, 29, 30, 31);
      }
      const SixteenWords low = __builtin_shufflevector(half[0], half[1], 0, 1, 2, 3, 8, 9, 10, 11,
                                                       16, 17, 18, 19, 24, 25, 26, 27);
      const SixteenWords high = __builtin_shufflevector(half[0], half[1], 4, 5, 6, 7, 12, 13, 14,
                                                        15, 20, 21, 22, 23, 28, 29, 30, 31);
      std::memcpy(to + (c + 4 * odd) * to_stride, &low, sizeof(low));
      std::memcpy(to + (c + 4 * odd + 8) * to_stride, &high, sizeof(high));
    }
  }
}
#else
constexpr std::int64_t kBlock = 4;
template <class P>
inline void transpose_block(const P* from, std::int64_t from_stride, P* to,
                            std::int64_t to_stride) {
  transpose_words(from, from_stride, to, to_stride);
}
#endif

/// A panel as pack_rows makes it, of [inner, columns] stored column by column, `stride` apart.
template <class P, class T>
void pack_columns(const T* from, std::int64_t stride, std::int64_t inner, std::int64_t columns,
                  P* to) {
  constexpr std::int64_t kElements = kWordElements<P>, kRow = kPanelColumns * kElements;
  constexpr std::int64_t kWords = std::is_same_v<P, T> ? kBlock : 4;  // a side of a block
  const std::int64_t whole_columns = columns / kWords * kWords;
  const std::int64_t whole_inner = inner / (kWords * kElements) * (kWords * kElements);
  for (std::int64_t k = 0; k < whole_inner; k += kWords * kElements)
    for (std::int64_t j = 0; j < whole_columns; j += kWords) {
      const T* block = from + j * stride + k;
      P* out = to + k / kElements * kRow + j * kElements;
      if constexpr (std::is_same_v<P, T>)
        transpose_block(block, stride, out, kRow);
      else
        transpose_words(block, stride, out, kRow);
    }
  for (std::int64_t k = 0; k < inner; k += kElements) {
    P* row = to + k / kElements * kRow;
    for (std::int64_t j = k < whole_inner ? whole_columns : 0; j < columns; ++j) {
      const T* low = from + j * stride + k;
      store_word(word_of<P>(low[0], k + kElements <= inner ? low[kElements - 1] : T{}),
                 row + j * kElements);
    }
    std::fill(row + columns * kElements, row + kRow, P{});
  }
}

/// Elements of a right factor [inner, columns] in panels.
template <class P>
std::int64_t packed_elements(std::int64_t inner, std::int64_t columns) {
  return padded(columns, kPanelColumns) * padded(inner, kWordElements<P>);
}

/// A right factor [inner, columns] as panels: of its rows, or of its columns, `stride` apart.
template <class P, class T>
Panels<P> pack_right_rows(const T* from, std::int64_t stride, std::int64_t inner,
                          std::int64_t columns, P* to) {
  const std::int64_t each = packed_elements<P>(inner, kPanelColumns);
  for (std::int64_t j = 0; j < columns; j += kPanelColumns)
    pack_rows<P>(from + j, stride, inner, std::min(kPanelColumns, columns - j),
                 to + j / kPanelColumns * each);
  return {to, each};
}
template <class P, class T>
Panels<P> pack_right_columns(const T* from, std::int64_t stride, std::int64_t inner,
                             std::int64_t columns, P* to) {
  const std::int64_t each = packed_elements<P>(inner, kPanelColumns);
  for (std::int64_t j = 0; j < columns; j += kPanelColumns)
    pack_columns<P>(from + j * stride, stride, inner, std::min(kPanelColumns, columns - j),
                    to + j / kPanelColumns * each);
  return {to, each};
}

/// The transpose of [inner, rows], stored row by row, as rows of a left factor, in room for a whole
/// number of groups.
template <class P, class T>
LeftRows<P> pack_left_columns(const T* from, std::int64_t stride, std::int64_t inner,
                              std::int64_t rows, P* to) {
  constexpr std::int64_t kElements = kWordElements<P>;
  const LeftRows<P> packed = LeftRows<P>::packed(to, words_of<P>(inner));
  for (std::int64_t k = 0; k < inner; k += kElements) {
    const T* low = from + k * stride;
    const T* high = high_row<P>(from, stride, inner, k);
    P* row = to + k * kRowGroup;
    for (std::int64_t i = 0; i < rows; i += kRowGroup) {
      pack_word_row<P, kRowGroup>(low + i, high == nullptr ? nullptr : high + i,
                                  std::min(kRowGroup, rows - i), row);
      row += packed.group_stride;
    }
  }
  return packed;
}

/// Rows of `inner` elements as P, one after the other, each a whole number of words long.
template <class P, class T>
void convert_rows(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t inner,
                  P* to) {
  const std::int64_t width = words_of<P>(inner) * kWordElements<P>;
  for (std::int64_t i = 0; i < rows; ++i) {
    if constexpr (std::is_same_v<P, T>) {
      std::copy_n(from + i * stride, inner, to + i * width);
    } else {
#pragma omp simd
      for (std::int64_t k = 0; k < inner; ++k) to[i * width + k] = to_float(from[i * stride + k]);
    }
    std::fill(to + i * width + inner, to + (i + 1) * width, P{});
  }
}

/// Rows of a left factor [rows, inner] where they are, or converted to `room` of rows * (inner + 1)
/// elements.
template <class P, class T>
LeftRows<P> left_rows(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t inner,
                      P* room) {
  if constexpr (std::is_same_v<P, T>) {
    if (inner % kWordElements<P> == 0) return LeftRows<P>::plain(from, stride);
  }
  convert_rows<P>(from, stride, rows, inner, room);
  return LeftRows<P>::plain(room, padded(inner, kWordElements<P>));
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
