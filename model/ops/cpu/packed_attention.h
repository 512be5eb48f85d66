// Causal attention in bf16 by oneDNN's packed products. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_PACKED_ATTENTION_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_PACKED_ATTENTION_H
#undef SCONE_MODEL_OPS_CPU_PACKED_ATTENTION_H
#else
#define SCONE_MODEL_OPS_CPU_PACKED_ATTENTION_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/matrix_product.h"
#include "model/ops/cpu/onednn.h"
#include "model/ops/cpu/packing.h"
#include "model/ops/cpu/scratch.h"
#include "model/ops/cpu/vector_math.h"
#include "model/ops/ops.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

/// One head of one sequence at a time, on the calling thread: queries by tiles of 64, keys by
/// chunks of at most 512. Matrices with one column for each element of a head lie in blocks of 64
/// columns.
class PackedAttention {
 public:
  PackedAttention(const CausalShape& shape, const Bf16* qkv, const std::int32_t* starts)
      : shape_(shape),
        each_(shape.head_width),
        width_(shape.heads * shape.head_width),
        blocks_(blocks_of(each_, kPackedColumns)),
        padded_length_(padded(shape.length, kTile)),
        qkv_(qkv),
        starts_(starts) {}

  void forward(std::int64_t sequence, std::int64_t head, Bf16* out, float* log_sum_exp) const {
    Room room;
    const Bf16* keys =
        pack_transposed(qkv_at(sequence, head, 1), 3 * width_, room.bf16(0, key_elements()));
    const Bf16* values = pack_rows(qkv_at(sequence, head, 2), 3 * width_, shape_.length,
                                   room.bf16(1, row_elements(padded_length_)));
    float* scores = room.fp32(0, kTile * padded_length_);
    Bf16* weights = room.bf16(2, kTile * padded_length_);
    float* sums = room.fp32(1, kTile * blocks_ * kPackedColumns);
    for (std::int64_t begin = 0; begin < shape_.length; begin += kTile) {
      const Tile tile = tile_at(sequence, begin);
      const Bf16* queries = copy_tile(qkv_at(sequence, head, 0) + begin * 3 * width_, 3 * width_,
                                      tile.rows, room.bf16(3, kTile * each_));
      products_with_keys(tile, queries, keys, scores);
      float totals[kTile];
      for (std::int64_t i = 0; i < tile.rows; ++i)
        log_sum_exp[(sequence * shape_.length + begin + i) * shape_.heads + head] =
            softmax(tile, i, scores, weights, totals[i]);
      clear_rows_beyond(tile, weights);
      products_with_rows(tile, weights, values, sums);
      for (std::int64_t i = 0; i < tile.rows; ++i)
        store_row(sums, i, 1.0F / totals[i],
                  out + (sequence * shape_.length + begin + i) * width_ + head * each_);
    }
  }

  struct Saved {
    const Bf16 *out, *d_out;
    const float* log_sum_exp;
  };

  void backward(std::int64_t sequence, std::int64_t head, const Saved& saved, Bf16* d_qkv) const {
    Room room;
    const std::int64_t stride = 3 * width_, columns = blocks_ * kPackedColumns;
    const Bf16* first_key = qkv_at(sequence, head, 1);
    const Bf16* keys = pack_transposed(first_key, stride, room.bf16(0, key_elements()));
    const Bf16* values =
        pack_transposed(qkv_at(sequence, head, 2), stride, room.bf16(1, key_elements()));
    const Bf16* key_rows =
        pack_rows(first_key, stride, shape_.length, room.bf16(2, row_elements(padded_length_)));
    float* scores = room.fp32(0, kTile * padded_length_);
    float* d_weights = room.fp32(1, kTile * padded_length_);
    float* d_queries = room.fp32(2, kTile * columns);
    float* d_keys = room.fp32(3, padded_length_ * columns);
    float* d_values = room.fp32(4, padded_length_ * columns);
    std::fill_n(d_keys, padded_length_ * columns, 0.0F);
    std::fill_n(d_values, padded_length_ * columns, 0.0F);
    Bf16* weights = room.bf16(3, kTile * padded_length_);
    Bf16* d_scores = room.bf16(4, kTile * padded_length_);
    for (std::int64_t begin = 0; begin < shape_.length; begin += kTile) {
      const Tile tile = tile_at(sequence, begin);
      const std::int64_t row = sequence * shape_.length + begin;
      const Bf16* query = qkv_at(sequence, head, 0) + begin * stride;
      const Bf16* d_o = saved.d_out + row * width_ + head * each_;
      const Bf16* queries = copy_tile(query, stride, tile.rows, room.bf16(5, kTile * each_));
      const Bf16* d_outputs = copy_tile(d_o, width_, tile.rows, room.bf16(6, kTile * each_));
      products_with_keys(tile, queries, keys, scores);
      products_with_keys(tile, d_outputs, values, d_weights);
      for (std::int64_t i = 0; i < tile.rows; ++i) {
        const Bf16* o = saved.out + (row + i) * width_ + head * each_;
        softmax_backward(tile, i, saved.log_sum_exp[(row + i) * shape_.heads + head],
                         dot(o, d_o + i * width_), scores, d_weights, weights, d_scores);
      }
      clear_rows_beyond(tile, weights);
      clear_rows_beyond(tile, d_scores);
      products_with_rows(tile, d_scores, key_rows, d_queries);
      for (std::int64_t i = 0; i < tile.rows; ++i)
        store_row(d_queries, i, 1.0F, d_qkv + (row + i) * stride + head * each_);
      add_transposed_products(
          tile, d_scores, pack_rows(query, stride, tile.rows, room.bf16(7, row_elements(kTile))),
          room.bf16(8, kTile * kChunk), d_keys);
      add_transposed_products(tile, weights,
                              pack_rows(d_o, width_, tile.rows, room.bf16(7, row_elements(kTile))),
                              room.bf16(8, kTile * kChunk), d_values);
    }
    for (std::int64_t i = 0; i < shape_.length; ++i) {
      Bf16* to = d_qkv + (sequence * shape_.length + i) * stride + width_ + head * each_;
      store_key_row(d_keys, i, to);
      store_key_row(d_values, i, to + width_);
    }
  }

 private:
  static constexpr std::int64_t kTile = 64;
  static constexpr std::int64_t kChunk = 512;

  /// Scratch of the calling thread, by number.
  struct Room {
    Bf16* bf16(int number, std::int64_t elements) {
      static thread_local Scratch scratch[9];
      return scratch[number].get<Bf16>(elements);
    }
    float* fp32(int number, std::int64_t elements) {
      static thread_local Scratch scratch[5];
      return scratch[number].get<float>(elements);
    }
  };

  /// Queries [begin, begin + rows) of a sequence and the keys [key_begin, key_end) that hold all
  /// that any of them attends to, both multiples of 64.
  struct Tile {
    std::int64_t begin, rows, key_begin, key_end;
    const std::int32_t* starts;  // of its queries
    std::int64_t keys() const { return key_end - key_begin; }
  };

  Tile tile_at(std::int64_t sequence, std::int64_t begin) const {
    const std::int32_t* starts = starts_ + sequence * shape_.length + begin;
    const std::int64_t rows = std::min(kTile, shape_.length - begin);
    return {begin, rows, *std::min_element(starts, starts + rows) / kTile * kTile, begin + kTile,
            starts};
  }

  const Bf16* qkv_at(std::int64_t sequence, std::int64_t head, std::int64_t part) const {
    return qkv_ + sequence * shape_.length * 3 * width_ + part * width_ + head * each_;
  }

  std::int64_t key_elements() const { return padded(each_, kPackedRows) * padded_length_; }
  std::int64_t row_elements(std::int64_t rows) const {
    return padded(rows, kPackedRows) * blocks_ * kPackedColumns;
  }

  /// The transpose of the sequence's rows as a right factor [each, length].
  const Bf16* pack_transposed(const Bf16* from, std::int64_t stride, Bf16* to) const {
    Bf16* block = to;
    for (std::int64_t key = 0; key < padded_length_; key += kPackedColumns)
      for (std::int64_t e = 0; e < each_; e += kPackedRows) {
        pack_transposed_block(from + key * stride + e, stride, std::min(kPackedRows, each_ - e),
                              std::min(kPackedColumns, shape_.length - key), block);
        block += kPackedRows * kPackedColumns;
      }
    return to;
  }

  /// Rows as a right factor [rows, each] for each block of columns.
  const Bf16* pack_rows(const Bf16* from, std::int64_t stride, std::int64_t rows, Bf16* to) const {
    Bf16* block = to;
    for (std::int64_t e = 0; e < each_; e += kPackedColumns)
      for (std::int64_t row = 0; row < padded(rows, kTile); row += kPackedRows) {
        const std::int64_t left = std::max<std::int64_t>(0, std::min(kPackedRows, rows - row));
        pack_block(from + row * stride + e, stride, left, std::min(kPackedColumns, each_ - e),
                   block);
        block += kPackedRows * kPackedColumns;
      }
    return to;
  }

  /// Rows as a left factor [64, each], zero beyond them.
  const Bf16* copy_tile(const Bf16* from, std::int64_t stride, std::int64_t rows, Bf16* to) const {
    for (std::int64_t i = 0; i < rows; ++i) std::copy_n(from + i * stride, each_, to + i * each_);
    std::fill(to + rows * each_, to + kTile * each_, Bf16{});
    return to;
  }

  /// out: a chunk of keys after the other, each [64, keys of the chunk].
  void products_with_keys(const Tile& tile, const Bf16* rows, const Bf16* packed,
                          float* out) const {
    for (std::int64_t key = 0; key < tile.keys(); key += kChunk)
      packed_product(rows, packed + (tile.key_begin + key) * padded(each_, kPackedRows),
                     out + key * kTile, kTile, std::min(kChunk, tile.keys() - key), each_, false);
  }

  /// sums: for each block of columns [64, 64].
  void products_with_rows(const Tile& tile, const Bf16* weights, const Bf16* packed,
                          float* sums) const {
    for (std::int64_t block = 0; block < blocks_; ++block)
      for (std::int64_t key = 0; key < tile.keys(); key += kChunk)
        packed_product(weights + key * kTile,
                       packed + (block * padded_length_ + tile.key_begin + key) * kPackedColumns,
                       sums + block * kTile * kPackedColumns, kTile, kPackedColumns,
                       std::min(kChunk, tile.keys() - key), key > 0);
  }

  /// sums, for each block of columns [length, 64], += the transpose of weights times 64 packed
  /// rows.
  void add_transposed_products(const Tile& tile, const Bf16* weights, const Bf16* packed,
                               Bf16* transposed, float* sums) const {
    for (std::int64_t key = 0; key < tile.keys(); key += kChunk) {
      const std::int64_t keys = std::min(kChunk, tile.keys() - key);
      transpose_rows(weights + key * kTile, keys, keys, kTile, transposed, kTile);
      for (std::int64_t block = 0; block < blocks_; ++block)
        packed_product(transposed, packed + block * kTile * kPackedColumns,
                       sums + (block * padded_length_ + tile.key_begin + key) * kPackedColumns,
                       keys, kPackedColumns, kTile, true);
    }
  }

  /// The part of a tile's row that a chunk of keys holds, and which of it the row attends to.
  struct RowPart {
    std::int64_t at;           // of the row in what is laid out by chunks
    std::int64_t keys;         // in the chunk
    std::int64_t first, last;  // attended: [first, last) of the chunk
  };
  RowPart row_part(const Tile& tile, std::int64_t row, std::int64_t key) const {
    const std::int64_t keys = std::min(kChunk, tile.keys() - key);
    const std::int64_t base = tile.key_begin + key;
    const std::int64_t first = std::clamp<std::int64_t>(tile.starts[row] - base, 0, keys);
    const std::int64_t last = std::clamp<std::int64_t>(tile.begin + row + 1 - base, 0, keys);
    return {key * kTile + row * keys, keys, std::min(first, last), last};
  }

  static void clear_outside(const RowPart& part, Bf16* to) {
    std::fill(to, to + part.first, Bf16{});
    std::fill(to + part.last, to + part.keys, Bf16{});
  }

  void clear_rows_beyond(const Tile& tile, Bf16* weights) const {
    if (tile.rows == kTile) return;
    for (std::int64_t key = 0; key < tile.keys(); key += kChunk) {
      const std::int64_t keys = std::min(kChunk, tile.keys() - key);
      std::fill_n(weights + key * kTile + tile.rows * keys, (kTile - tile.rows) * keys, Bf16{});
    }
  }

  /// weights = exp(score - the row's largest); total: their sum. Returns the row's log_sum_exp.
  float softmax(const Tile& tile, std::int64_t row, const float* scores, Bf16* weights,
                float& total) const {
    const float scale = 1.0F / std::sqrt(static_cast<float>(each_));
    float largest = -INFINITY;
    for (std::int64_t key = 0; key < tile.keys(); key += kChunk) {
      const RowPart part = row_part(tile, row, key);
      const float* from = scores + part.at;
#pragma omp simd reduction(max : largest)
      for (std::int64_t j = part.first; j < part.last; ++j)
        largest = from[j] > largest ? from[j] : largest;
    }
    float sum = 0.0F;
    for (std::int64_t key = 0; key < tile.keys(); key += kChunk) {
      const RowPart part = row_part(tile, row, key);
      const float* from = scores + part.at;
      Bf16* to = weights + part.at;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = part.first; j < part.last; ++j) {
        const float weight = fast_exp((from[j] - largest) * scale);
        sum += weight;
        to[j] = to_bf16(weight);
      }
      clear_outside(part, to);
    }
    total = sum;
    return largest * scale + std::log(sum);
  }

  /// weights: those of the forward pass; d_scores: gradients of q k.
  void softmax_backward(const Tile& tile, std::int64_t row, float log_sum, float mean,
                        const float* scores, const float* d_weights, Bf16* weights,
                        Bf16* d_scores) const {
    const float scale = 1.0F / std::sqrt(static_cast<float>(each_));
    for (std::int64_t key = 0; key < tile.keys(); key += kChunk) {
      const RowPart part = row_part(tile, row, key);
      const float* from = scores + part.at;
      const float* d_from = d_weights + part.at;
      Bf16* to = weights + part.at;
      Bf16* d_to = d_scores + part.at;
#pragma omp simd
      for (std::int64_t j = part.first; j < part.last; ++j) {
        const float weight = fast_exp(from[j] * scale - log_sum);
        to[j] = to_bf16(weight);
        d_to[j] = to_bf16(weight * (d_from[j] - mean) * scale);
      }
      clear_outside(part, to);
      clear_outside(part, d_to);
    }
  }

  float dot(const Bf16* a, const Bf16* b) const {
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t e = 0; e < each_; ++e) sum += to_float(a[e]) * to_float(b[e]);
    return sum;
  }

  /// A row of what products_with_rows wrote.
  void store_row(const float* sums, std::int64_t row, float factor, Bf16* to) const {
    for (std::int64_t block = 0; block < blocks_; ++block)
      store_columns(sums + (block * kTile + row) * kPackedColumns, block, factor, to);
  }
  /// A row of what add_transposed_products wrote.
  void store_key_row(const float* sums, std::int64_t row, Bf16* to) const {
    for (std::int64_t block = 0; block < blocks_; ++block)
      store_columns(sums + (block * padded_length_ + row) * kPackedColumns, block, 1.0F, to);
  }
  void store_columns(const float* from, std::int64_t block, float factor, Bf16* to) const {
    const std::int64_t begin = block * kPackedColumns;
    const std::int64_t columns = std::min(kPackedColumns, each_ - begin);
#pragma omp simd
    for (std::int64_t e = 0; e < columns; ++e) to[begin + e] = to_bf16(from[e] * factor);
  }

  CausalShape shape_;
  std::int64_t each_, width_, blocks_, padded_length_;
  const Bf16* qkv_;
  const std::int32_t* starts_;
};

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
