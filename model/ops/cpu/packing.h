// Operands of bf16 products in oneDNN's order (onednn.h). Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_PACKING_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_PACKING_H
#undef SCONE_MODEL_OPS_CPU_PACKING_H
#else
#define SCONE_MODEL_OPS_CPU_PACKING_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "model/ops/cpu/onednn.h"
#include "parallel/bf16.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

typedef std::uint32_t FourWords __attribute__((vector_size(16)));
typedef std::uint16_t EightHalves __attribute__((vector_size(16)));

template <class Vector, class T>
inline Vector load_vector(const T* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}
template <class Vector, class T>
inline void store_vector(const Vector& vector, T* to) {
  std::memcpy(to, &vector, sizeof(vector));
}

/// to[j][i] = from[i][j] for i, j < 4, of 32-bit words; strides in elements of 16 bits.
inline void transpose_words(const Bf16* from, std::int64_t from_stride, Bf16* to,
                            std::int64_t to_stride) {
  FourWords row[4], half[4];
  for (int i = 0; i < 4; ++i) row[i] = load_vector<FourWords>(from + i * from_stride);
  for (int i = 0; i < 2; ++i) {
    half[i] = __builtin_shufflevector(row[2 * i], row[2 * i + 1], 0, 4, 1, 5);
    half[i + 2] = __builtin_shufflevector(row[2 * i], row[2 * i + 1], 2, 6, 3, 7);
  }
  store_vector(__builtin_shufflevector(half[0], half[1], 0, 1, 4, 5), to);
  store_vector(__builtin_shufflevector(half[0], half[1], 2, 3, 6, 7), to + to_stride);
  store_vector(__builtin_shufflevector(half[2], half[3], 0, 1, 4, 5), to + 2 * to_stride);
  store_vector(__builtin_shufflevector(half[2], half[3], 2, 3, 6, 7), to + 3 * to_stride);
}

/// to[j][i] = from[i][j] for i, j < 8.
inline void transpose_halves(const Bf16* from, std::int64_t from_stride, Bf16* to,
                             std::int64_t to_stride) {
  EightHalves row[8], pair[8];
  for (int i = 0; i < 8; ++i) row[i] = load_vector<EightHalves>(from + i * from_stride);
  for (int i = 0; i < 4; ++i) {  // pair[i]: columns 0 .. 3 of rows i, i + 4; pair[i + 4]: 4 .. 7
    pair[i] = __builtin_shufflevector(row[i], row[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
    pair[i + 4] = __builtin_shufflevector(row[i], row[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
  }
  for (int h = 0; h < 2; ++h) {
    const EightHalves* p = pair + 4 * h;  // rows 0 4, 1 5, 2 6, 3 7 of four columns
    const EightHalves even_low = __builtin_shufflevector(p[0], p[2], 0, 8, 1, 9, 2, 10, 3, 11);
    const EightHalves even_high = __builtin_shufflevector(p[0], p[2], 4, 12, 5, 13, 6, 14, 7, 15);
    const EightHalves odd_low = __builtin_shufflevector(p[1], p[3], 0, 8, 1, 9, 2, 10, 3, 11);
    const EightHalves odd_high = __builtin_shufflevector(p[1], p[3], 4, 12, 5, 13, 6, 14, 7, 15);
    Bf16* first = to + 4 * h * to_stride;
    store_vector(__builtin_shufflevector(even_low, odd_low, 0, 8, 1, 9, 2, 10, 3, 11), first);
    store_vector(__builtin_shufflevector(even_low, odd_low, 4, 12, 5, 13, 6, 14, 7, 15),
                 first + to_stride);
    store_vector(__builtin_shufflevector(even_high, odd_high, 0, 8, 1, 9, 2, 10, 3, 11),
                 first + 2 * to_stride);
    store_vector(__builtin_shufflevector(even_high, odd_high, 4, 12, 5, 13, 6, 14, 7, 15),
                 first + 3 * to_stride);
  }
}

/// A block of B: [k, n] stored row by row; rows, columns: how much of the block there is.
inline void pack_block(const Bf16* from, std::int64_t stride, std::int64_t rows,
                       std::int64_t columns, Bf16* to) {
  for (std::int64_t row = 0; row < kPackedRows; row += 2) {
    Bf16* out = to + row * kPackedColumns;
    const Bf16* even = from + row * stride;
    if (row + 1 < rows && columns == kPackedColumns) {
      const Bf16* odd = even + stride;
      for (std::int64_t j = 0; j < kPackedColumns; ++j) {
        out[2 * j] = even[j];
        out[2 * j + 1] = odd[j];
      }
      continue;
    }
    for (std::int64_t j = 0; j < kPackedColumns; ++j)
      for (std::int64_t parity = 0; parity < 2; ++parity)
        out[2 * j + parity] =
            row + parity < rows && j < columns ? even[parity * stride + j] : Bf16{};
  }
}

/// The same of a B that is stored column by column, columns `stride` apart.
inline void pack_transposed_block(const Bf16* from, std::int64_t stride, std::int64_t rows,
                                  std::int64_t columns, Bf16* to) {
  if (rows == kPackedRows && columns == kPackedColumns) {
    for (std::int64_t j = 0; j < kPackedColumns; j += 4)
      for (std::int64_t row = 0; row < kPackedRows; row += 8)
        transpose_words(from + j * stride + row, stride, to + row * kPackedColumns + 2 * j,
                        2 * kPackedColumns);
    return;
  }
  for (std::int64_t row = 0; row < kPackedRows; ++row)
    for (std::int64_t j = 0; j < kPackedColumns; ++j)
      to[(row / 2 * kPackedColumns + j) * 2 + row % 2] =
          row < rows && j < columns ? from[j * stride + row] : Bf16{};
}

/// to: [rows, columns] = the transpose of from: [columns, rows].
inline void transpose_rows(const Bf16* from, std::int64_t from_stride, std::int64_t rows,
                           std::int64_t columns, Bf16* to, std::int64_t to_stride) {
  const std::int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
  // Whole lines of the result one after the other: its rows may lie a multiple of 4096 bytes apart,
  // and then share few places in a cache.
  constexpr std::int64_t kLine = 32;
  for (std::int64_t line = 0; line < whole_columns; line += kLine)
    for (std::int64_t i = 0; i < whole_rows; i += 8)
      for (std::int64_t j = line; j < std::min(line + kLine, whole_columns); j += 8)
        transpose_halves(from + j * from_stride + i, from_stride, to + i * to_stride + j,
                         to_stride);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      to[i * to_stride + j] = from[j * from_stride + i];
  }
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
