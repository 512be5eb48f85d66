// Products of rows with packed panels of columns. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_PANEL_PRODUCT_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_PANEL_PRODUCT_H
#undef SCONE_MODEL_OPS_CPU_PANEL_PRODUCT_H
#else
#define SCONE_MODEL_OPS_CPU_PANEL_PRODUCT_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// Where instructions exist that multiply bf16: cpu_backend.cpp asks whether the processor has them.
#undef SCONE_HAS_BF16_WORDS
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
#define SCONE_HAS_BF16_WORDS 1
#else
#define SCONE_HAS_BF16_WORDS 0
#endif

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Factors are multiplied in words of 32 bits: one float, or two bf16 that follow each other along
// the inner dimension, the second of the last word 0 where that is odd. A panel holds kPanelColumns
// columns of a right factor, word after word of the inner dimension, in each the columns' words. P:
// the type that is multiplied, float or Bf16.

using Lanes = hn::ScalableTag<float>;
using Vector = hn::Vec<Lanes>;
constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(Lanes()));
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
constexpr int kPanelVectors = 2;  // 16 registers
#else
constexpr int kPanelVectors = 4;  // 32
#endif
constexpr std::int64_t kPanelColumns = kPanelVectors * kLanes;
constexpr int kKernelRows = 6;
constexpr std::int64_t kRowGroup = 16;

template <class P>
constexpr std::int64_t kWordElements = sizeof(float) / sizeof(P);

inline std::int64_t blocks_of(std::int64_t extent, std::int64_t block) {
  return (extent + block - 1) / block;
}
inline std::int64_t padded(std::int64_t extent, std::int64_t multiple) {
  return blocks_of(extent, multiple) * multiple;
}
template <class P>
std::int64_t words_of(std::int64_t elements) {
  return blocks_of(elements, kWordElements<P>);
}

/// Rows of a left factor, in groups of kRowGroup: a word lies at data + group * group_stride + row
/// of the group * row_stride + word * word_stride. Strides in elements.
template <class P>
struct LeftRows {
  const P* data;
  std::int64_t row_stride, word_stride, group_stride;

  /// Rows that lie one after the other, where words do too.
  static LeftRows plain(const P* data, std::int64_t stride) {
    return {data, stride, kWordElements<P>, kRowGroup * stride};
  }
  /// Packed rows: for each group, word after word, the words of the group's rows.
  static LeftRows packed(const P* data, std::int64_t words) {
    constexpr std::int64_t kElements = kWordElements<P>;
    return {data, kElements, kRowGroup * kElements, kRowGroup * kElements * words};
  }
  /// From a row that begins a group, and a word.
  LeftRows from(std::int64_t row, std::int64_t word) const {
    LeftRows rest = *this;
    rest.data += row / kRowGroup * group_stride + word * word_stride;
    return rest;
  }
};

template <class P>
HWY_INLINE Vector add_product(Vector a, Vector b, Vector sum) {
  if constexpr (std::is_same_v<P, float>) {
    return hn::MulAdd(a, b, sum);
  } else {
#if SCONE_HAS_BF16_WORDS
    // By its name: this file is compiled for AVX-512 without BF16.
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
#endif
    return sum;
  }
}

template <class P>
HWY_INLINE Vector broadcast_word(const P* from) {
  float word;
  std::memcpy(&word, from, sizeof(word));
  return hn::Set(Lanes(), word);
}

/// c (+)= kRows rows times kVectors vectors of a panel's columns.
template <class P, int kRows, int kVectors>
void panel_kernel(const P* rows, std::int64_t row_stride, std::int64_t word_stride, const P* panel,
                  std::int64_t words, float* c, std::int64_t c_stride, bool accumulate) {
  const Lanes lanes;
  Vector sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = hn::Zero(lanes);
      __builtin_prefetch(c + i * c_stride + v * kLanes, 1);  // there by the end
    }
  for (std::int64_t word = 0; word < words; ++word) {
    Vector columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      columns[v] = hn::LoadU(lanes, reinterpret_cast<const float*>(panel) + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vector row = broadcast_word(rows + i * row_stride);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = add_product<P>(row, columns[v], sums[i][v]);
    }
    rows += word_stride;
    panel += kPanelColumns * kWordElements<P>;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + i * c_stride + v * kLanes;
      hn::StoreU(accumulate ? hn::Add(hn::LoadU(lanes, to), sums[i][v]) : sums[i][v], lanes, to);
    }
}

template <class P>
using PanelKernel = decltype(&panel_kernel<P, 1, 1>);

template <class P, int kRows, int... kVectors>
constexpr std::array<PanelKernel<P>, kPanelVectors> kernels_of_rows(
    std::integer_sequence<int, kVectors...>) {
  return {&panel_kernel<P, kRows, kVectors + 1>...};
}
template <class P, int... kRows>
constexpr std::array<std::array<PanelKernel<P>, kPanelVectors>, kKernelRows> kernels_of(
    std::integer_sequence<int, kRows...>) {
  return {kernels_of_rows<P, kRows + 1>(std::make_integer_sequence<int, kPanelVectors>())...};
}

/// Columns of a right factor in panels, each `stride` elements after the one before.
template <class P>
struct Panels {
  const P* data;
  std::int64_t stride;

  /// From a word, and a column that begins a panel.
  Panels from(std::int64_t word, std::int64_t column) const {
    return {data + column / kPanelColumns * stride + word * kPanelColumns * kWordElements<P>,
            stride};
  }
};

/// c (+)= rows of A times columns of B, over `words` words. c: [rows, columns], `c_stride` apart,
/// is written up to the next multiple of kLanes of its columns.
template <class P>
void multiply_panels(const LeftRows<P>& a, std::int64_t rows, const Panels<P>& b,
                     std::int64_t columns, std::int64_t words, float* c, std::int64_t c_stride,
                     bool accumulate) {
  static constexpr auto kKernels = kernels_of<P>(std::make_integer_sequence<int, kKernelRows>());
  constexpr std::int64_t kChunkWords = 384;  // of a panel: they stay in a near cache
  for (std::int64_t word = 0; word < words; word += kChunkWords) {
    const std::int64_t chunk = std::min(kChunkWords, words - word);
    for (std::int64_t column = 0; column < columns; column += kPanelColumns) {
      const P* panel = b.from(word, column).data;
      const auto vectors = blocks_of(std::min(kPanelColumns, columns - column), kLanes);
      for (std::int64_t group = 0; group < rows; group += kRowGroup) {
        const std::int64_t height = std::min(kRowGroup, rows - group);
        const std::int64_t parts = blocks_of(height, kKernelRows);
        const P* from = a.from(group, word).data;
        for (std::int64_t part = 0; part < parts; ++part) {  // of about as many rows
          const std::int64_t row = height * part / parts, end = height * (part + 1) / parts;
          kKernels[static_cast<std::size_t>(end - row - 1)][static_cast<std::size_t>(vectors - 1)](
              from + row * a.row_stride, a.row_stride, a.word_stride, panel, chunk,
              c + (group + row) * c_stride + column, c_stride, accumulate || word > 0);
        }
      }
    }
  }
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
