// Causal attention by products with packed panels. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_CAUSAL_ATTENTION_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_CAUSAL_ATTENTION_H
#undef SCONE_MODEL_OPS_CPU_CAUSAL_ATTENTION_H
#else
#define SCONE_MODEL_OPS_CPU_CAUSAL_ATTENTION_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/packing.h"
#include "model/ops/cpu/panel_product.h"
#include "model/ops/cpu/scratch.h"
#include "model/ops/cpu/vector_math.h"
#include "model/ops/ops.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

/// One head of one sequence at a time, on the calling thread, queries by tiles of 64. Elements are
/// stored as T and multiplied as P.
template <class T, class P>
class CausalAttention {
 public:
  CausalAttention(const CausalShape& shape, const T* qkv, const std::int32_t* starts)
      : shape_(shape),
        each_(shape.head_width),
        width_(shape.heads * shape.head_width),
        stride_(3 * width_),
        columns_(padded(each_, kPanelColumns)),
        keys_(padded(shape.length, kTile)),
        scale_(1.0F / std::sqrt(static_cast<float>(each_))),
        qkv_(qkv),
        starts_(starts) {}

  void forward(std::int64_t sequence, std::int64_t head, T* out, float* log_sum_exp) const {
    Room room;
    const Panels<P> keys = columns_of(sequence, head, 1, room.packed(0, key_elements()));
    const Panels<P> values = rows_of(sequence, head, 2, room.packed(1, row_elements()));
    float* scores = room.floats(0, kTile * keys_);
    P* weights = room.packed(2, kTile * keys_);
    float* sums = room.floats(1, kTile * columns_);
    for (std::int64_t begin = 0; begin < shape_.length; begin += kTile) {
      const Tile tile = tile_at(sequence, begin);
      const LeftRows<P> queries = left_rows(qkv_at(sequence, head, 0) + begin * stride_, stride_,
                                            tile.rows, each_, room.packed(3, kTile * (each_ + 1)));
      multiply_with_columns(tile, queries, keys, scores);
      float totals[kTile];
      for (std::int64_t i = 0; i < tile.rows; ++i)
        log_sum_exp[(sequence * shape_.length + begin + i) * shape_.heads + head] =
            softmax(tile, i, scores + i * keys_, weights + i * keys_, totals[i]);
      multiply_with_rows(tile, weights, values, sums);
      for (std::int64_t i = 0; i < tile.rows; ++i)
        store(sums + i * columns_, 1.0F / totals[i],
              out + (sequence * shape_.length + begin + i) * width_ + head * each_);
    }
  }

  /// What the forward pass left, and the gradients of its output.
  struct Saved {
    const T *out, *d_out;
    const float* log_sum_exp;
  };

  void backward(std::int64_t sequence, std::int64_t head, const Saved& saved, T* d_qkv) const {
    Room room;
    const Panels<P> keys = columns_of(sequence, head, 1, room.packed(0, key_elements()));
    const Panels<P> values = columns_of(sequence, head, 2, room.packed(1, key_elements()));
    const Panels<P> key_rows = rows_of(sequence, head, 1, room.packed(2, row_elements()));
    float* scores = room.floats(0, kTile * keys_);
    float* d_weights = room.floats(1, kTile * keys_);
    float* d_queries = room.floats(2, kTile * columns_);
    float* d_keys = room.floats(3, keys_ * columns_);
    float* d_values = room.floats(4, keys_ * columns_);
    std::fill_n(d_keys, keys_ * columns_, 0.0F);
    std::fill_n(d_values, keys_ * columns_, 0.0F);
    P* weights = room.packed(3, kTile * keys_);
    P* d_scores = room.packed(4, kTile * keys_);
    P* transposed = room.packed(7, kTile * keys_);
    P* tile_rows = room.packed(8, packed_elements<P>(kTile, each_));
    for (std::int64_t begin = 0; begin < shape_.length; begin += kTile) {
      const Tile tile = tile_at(sequence, begin);
      const std::int64_t row = sequence * shape_.length + begin;
      const T* query = qkv_at(sequence, head, 0) + begin * stride_;
      const T* d_o = saved.d_out + row * width_ + head * each_;
      multiply_with_columns(
          tile, left_rows(query, stride_, tile.rows, each_, room.packed(5, kTile * (each_ + 1))),
          keys, scores);
      multiply_with_columns(
          tile, left_rows(d_o, width_, tile.rows, each_, room.packed(6, kTile * (each_ + 1))),
          values, d_weights);
      for (std::int64_t i = 0; i < tile.rows; ++i) {
        const T* o = saved.out + (row + i) * width_ + head * each_;
        const std::int64_t at = i * keys_;
        softmax_backward(tile, i, saved.log_sum_exp[(row + i) * shape_.heads + head],
                         dot(o, d_o + i * width_), scores + at, d_weights + at, weights + at,
                         d_scores + at);
      }
      multiply_with_rows(tile, d_scores, key_rows, d_queries);
      for (std::int64_t i = 0; i < tile.rows; ++i)
        store(d_queries + i * columns_, 1.0F, d_qkv + (row + i) * stride_ + head * each_);
      add_transposed(tile, d_scores, transposed,
                     pack_right_rows<P>(query, stride_, tile.rows, each_, tile_rows), d_keys);
      add_transposed(tile, weights, transposed,
                     pack_right_rows<P>(d_o, width_, tile.rows, each_, tile_rows), d_values);
    }
    for (std::int64_t i = 0; i < shape_.length; ++i) {
      T* to = d_qkv + (sequence * shape_.length + i) * stride_ + width_ + head * each_;
      store(d_keys + i * columns_, 1.0F, to);
      store(d_values + i * columns_, 1.0F, to + width_);
    }
  }

 private:
  static constexpr std::int64_t kTile = 64;
  static_assert(kTile % kPanelColumns == 0);

  /// Scratch of the calling thread, by number.
  struct Room {
    P* packed(int number, std::int64_t elements) {
      static thread_local Scratch scratch[9];
      return scratch[number].get<P>(elements);
    }
    float* floats(int number, std::int64_t elements) {
      static thread_local Scratch scratch[5];
      return scratch[number].get<float>(elements);
    }
  };

  /// Queries [begin, begin + rows) of a sequence and the keys [key_begin, begin + rows) that hold
  /// all that any of them attends to. What has a column for each key has one for key_begin first.
  struct Tile {
    std::int64_t begin, rows, key_begin;
    const std::int32_t* starts;  // of its queries
    std::int64_t keys() const { return begin + rows - key_begin; }
  };

  Tile tile_at(std::int64_t sequence, std::int64_t begin) const {
    const std::int32_t* starts = starts_ + sequence * shape_.length + begin;
    const std::int64_t rows = std::min(kTile, shape_.length - begin);
    return {begin, rows, *std::min_element(starts, starts + rows) / kTile * kTile, starts};
  }

  /// Queries (part 0), keys (1) or values (2) of a head: [length, each], stride_ apart.
  const T* qkv_at(std::int64_t sequence, std::int64_t head, std::int64_t part) const {
    return qkv_ + sequence * shape_.length * stride_ + part * width_ + head * each_;
  }

  std::int64_t key_elements() const { return packed_elements<P>(each_, shape_.length); }
  std::int64_t row_elements() const { return packed_elements<P>(shape_.length, each_); }

  /// Their transpose, [each, length], and themselves, [length, each], as right factors.
  Panels<P> columns_of(std::int64_t sequence, std::int64_t head, std::int64_t part, P* to) const {
    return pack_right_columns<P>(qkv_at(sequence, head, part), stride_, each_, shape_.length, to);
  }
  Panels<P> rows_of(std::int64_t sequence, std::int64_t head, std::int64_t part, P* to) const {
    return pack_right_rows<P>(qkv_at(sequence, head, part), stride_, shape_.length, each_, to);
  }

  /// out: [rows, keys], keys_ apart.
  void multiply_with_columns(const Tile& tile, const LeftRows<P>& rows, const Panels<P>& columns,
                             float* out) const {
    multiply_panels(rows, tile.rows, columns.from(0, tile.key_begin), tile.keys(),
                    words_of<P>(each_), out, keys_, false);
  }

  /// weights: [rows, keys], keys_ apart; sums: [rows, each], columns_ apart.
  void multiply_with_rows(const Tile& tile, const P* weights, const Panels<P>& rows,
                          float* sums) const {
    multiply_panels(LeftRows<P>::plain(weights, keys_), tile.rows,
                    rows.from(words_of<P>(tile.key_begin), 0), each_, words_of<P>(tile.keys()),
                    sums, columns_, false);
  }

  /// sums: [length, each], columns_ apart, += the transpose of weights times a tile's rows.
  void add_transposed(const Tile& tile, const P* weights, P* room, const Panels<P>& rows,
                      float* sums) const {
    multiply_panels(pack_left_columns<P>(weights, keys_, tile.rows, tile.keys(), room), tile.keys(),
                    rows, each_, words_of<P>(tile.rows), sums + tile.key_begin * columns_, columns_,
                    true);
  }

  /// The keys that a tile's row attends to.
  struct Range {
    std::int64_t first, last;  // [first, last)
  };
  static Range attended(const Tile& tile, std::int64_t row) {
    return {tile.starts[row] - tile.key_begin, tile.begin + row + 1 - tile.key_begin};
  }
  static void clear_others(const Tile& tile, const Range& range, P* to) {
    std::fill(to, to + range.first, P{});
    std::fill(to + range.last, to + padded(tile.keys(), kWordElements<P>), P{});
  }

  /// weights = exp(score - the row's largest); total: their sum. Returns the row's log_sum_exp.
  float softmax(const Tile& tile, std::int64_t row, const float* scores, P* weights,
                float& total) const {
    const Range range = attended(tile, row);
    float largest = scores[range.first];
#pragma omp simd reduction(max : largest)
    for (std::int64_t j = range.first; j < range.last; ++j)
      largest = scores[j] > largest ? scores[j] : largest;
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = range.first; j < range.last; ++j) {
      const float weight = fast_exp((scores[j] - largest) * scale_);
      sum += weight;
      weights[j] = from_float<P>(weight);
    }
    clear_others(tile, range, weights);
    total = sum;
    return largest * scale_ + std::log(sum);
  }

  /// weights: those of the forward pass; d_scores: gradients of q k.
  void softmax_backward(const Tile& tile, std::int64_t row, float log_sum, float mean,
                        const float* scores, const float* d_weights, P* weights,
                        P* d_scores) const {
    const Range range = attended(tile, row);
#pragma omp simd
    for (std::int64_t j = range.first; j < range.last; ++j) {
      const float weight = fast_exp(scores[j] * scale_ - log_sum);
      weights[j] = from_float<P>(weight);
      d_scores[j] = from_float<P>(weight * (d_weights[j] - mean) * scale_);
    }
    clear_others(tile, range, weights);
    clear_others(tile, range, d_scores);
  }

  float dot(const T* a, const T* b) const {
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t e = 0; e < each_; ++e) sum += to_float(a[e]) * to_float(b[e]);
    return sum;
  }

  void store(const float* sums, float factor, T* to) const {
#pragma omp simd
    for (std::int64_t e = 0; e < each_; ++e) to[e] = from_float<T>(sums[e] * factor);
  }

  CausalShape shape_;
  std::int64_t each_, width_, stride_;
  std::int64_t columns_;  // of what has one for each element of a head
  std::int64_t keys_;     // columns of what has one for each key
  float scale_;
  const T* qkv_;
  const std::int32_t* starts_;
};

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
