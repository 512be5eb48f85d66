#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/onednn.h"
#include "model/ops/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/attention.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/packed_attention.h"
#include "model/ops/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

constexpr std::int64_t kQueryTile = 64;
constexpr std::int64_t kGemmFrom = 8;           // queries, of attention with a cache
constexpr std::int64_t kThreadsFrom = 1 << 17;  // products of queries and keys, over all heads

/// Scratch of the calling thread.
float* scratch(std::int64_t elements) {
  static thread_local Scratch storage;
  return storage.get<float>(elements);
}

/// A matrix of floats, rows `stride` apart.
struct Floats {
  const float* data;
  std::int64_t stride;
};

/// [rows, width] of a tensor, as floats: where they lie, or converted into room for rows * width.
template <class T>
Floats floats_of(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t width,
                 float* room) {
  if constexpr (std::is_same_v<T, float>) {
    return {from, stride};
  } else {
    for (std::int64_t i = 0; i < rows; ++i) {
#pragma omp simd
      for (std::int64_t e = 0; e < width; ++e) room[i * width + e] = to_float(from[i * stride + e]);
    }
    return {room, width};
  }
}

template <class T>
void round_to(const float* from, std::int64_t rows, std::int64_t width, T* to,
              std::int64_t stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
#pragma omp simd
    for (std::int64_t e = 0; e < width; ++e)
      to[i * stride + e] = from_float<T>(from[i * width + e]);
  }
}

std::int64_t smallest_start(const std::int32_t* start, std::int64_t begin, std::int64_t end) {
  return *std::min_element(start + begin, start + end);
}

/// scores[0 .. n) -> weights, of which only [first, last] are not zero. Returns the log of the sum
/// of exponentials.
float softmax_row(float* scores, std::int64_t n, std::int64_t first, std::int64_t last) {
  float largest = scores[first];
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = first; j <= last; ++j) largest = scores[j] > largest ? scores[j] : largest;
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = first; j <= last; ++j) {
    scores[j] = fast_exp(scores[j] - largest);
    sum += scores[j];
  }
  const float factor = 1.0F / sum;
#pragma omp simd
  for (std::int64_t j = first; j <= last; ++j) scores[j] *= factor;
  std::fill(scores, scores + first, 0.0F);
  std::fill(scores + last + 1, scores + n, 0.0F);
  return largest + std::log(sum);
}

/// A head's query at one position, and the cached keys that it attends to; their values lie
/// `stride` / 2 behind them.
template <class T>
struct CachedHead {
  const T *query, *keys;
  std::int64_t stride, head_width, count;
};

/// Scores and output are summed over four keys at a time, so that q and out are read once for them.
/// sums: room for head_width.
template <class T>
void attend_one(const CachedHead<T>& head, float scale, float* scores, float* sums, T* out) {
  const T* q = head.query;
  const std::int64_t stride = head.stride, width = head.head_width, whole = head.count / 4 * 4;
  for (std::int64_t j = 0; j < whole; j += 4) {
    const T* k = head.keys + j * stride;
    float a = 0.0F, b = 0.0F, c = 0.0F, d = 0.0F;
#pragma omp simd reduction(+ : a, b, c, d)
    for (std::int64_t e = 0; e < width; ++e) {
      const float query = to_float(q[e]);
      a += query * to_float(k[e]);
      b += query * to_float(k[e + stride]);
      c += query * to_float(k[e + 2 * stride]);
      d += query * to_float(k[e + 3 * stride]);
    }
    scores[j] = a * scale;
    scores[j + 1] = b * scale;
    scores[j + 2] = c * scale;
    scores[j + 3] = d * scale;
  }
  for (std::int64_t j = whole; j < head.count; ++j) {
    const T* k = head.keys + j * stride;
    float dot = 0.0F;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t e = 0; e < width; ++e) dot += to_float(q[e]) * to_float(k[e]);
    scores[j] = dot * scale;
  }
  softmax_row(scores, head.count, 0, head.count - 1);
  std::fill(sums, sums + width, 0.0F);
  for (std::int64_t j = 0; j < whole; j += 4) {
    const T* v = head.keys + j * stride + stride / 2;
    const float a = scores[j], b = scores[j + 1], c = scores[j + 2], d = scores[j + 3];
#pragma omp simd
    for (std::int64_t e = 0; e < width; ++e)
      sums[e] += a * to_float(v[e]) + b * to_float(v[e + stride]) +
                 c * to_float(v[e + 2 * stride]) + d * to_float(v[e + 3 * stride]);
  }
  for (std::int64_t j = whole; j < head.count; ++j) {
    const T* v = head.keys + j * stride + stride / 2;
#pragma omp simd
    for (std::int64_t e = 0; e < width; ++e) sums[e] += scores[j] * to_float(v[e]);
  }
  round_to(sums, 1, width, out, width);
}

template <class T>
void rotate(const Tensor& qkv, const Tensor& positions, std::int64_t heads, std::int64_t head_width,
            bool inverse, std::int64_t rows) {
  const std::int64_t width = heads * head_width, half = head_width / 2;
  T* values = qkv.data<T>();
  const std::int32_t* position = positions.data<std::int32_t>();
  static thread_local Scratch frequencies;
  double* const frequency = frequencies.get<double>(half);
  for (std::int64_t j = 0; j < half; ++j) {
    frequency[j] = std::pow(static_cast<double>(kRopeBase),
                            -2.0 * static_cast<double>(j) / static_cast<double>(head_width));
  }
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    float* const cosine = scratch(2 * half);
    float* const sine = cosine + half;
    for (std::int64_t j = 0; j < half; ++j) {
      const double angle = position[i] * frequency[j];
      cosine[j] = static_cast<float>(std::cos(angle));
      sine[j] = static_cast<float>(inverse ? -std::sin(angle) : std::sin(angle));
    }
    for (std::int64_t head = 0; head < 2 * heads; ++head) {  // q's heads, then k's
      T* low = values + i * 3 * width + head * head_width;
      T* high = low + half;
#pragma omp simd
      for (std::int64_t j = 0; j < half; ++j) {
        const float a = to_float(low[j]), b = to_float(high[j]);
        low[j] = from_float<T>(a * cosine[j] - b * sine[j]);
        high[j] = from_float<T>(b * cosine[j] + a * sine[j]);
      }
    }
  }
}

template <class T>
void attend(const CausalShape& shape, const T* qkv, const std::int32_t* starts, T* out,
            float* log_sum_exp) {
  const std::int64_t each = shape.head_width, width = shape.heads * each, stride = 3 * width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(each));
  const std::int64_t tiles = (shape.length + kQueryTile - 1) / kQueryTile;
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (std::int64_t sequence = 0; sequence < shape.sequences; ++sequence) {
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t begin = tile * kQueryTile;
        const std::int64_t end = std::min(shape.length, begin + kQueryTile), m = end - begin;
        const std::int64_t first_row = sequence * shape.length, at = head * each;
        const std::int32_t* start = starts + first_row;
        const std::int64_t low = smallest_start(start, begin, end), keys = end - low;
        float* scores = scratch(kQueryTile * shape.length + 2 * (kQueryTile + shape.length) * each);
        float* room = scores + kQueryTile * shape.length;
        float* sums = room + kQueryTile * each;
        float* key_room = sums + kQueryTile * each;
        const T* first_key = qkv + (first_row + low) * stride + width + at;
        const Floats q = floats_of(qkv + (first_row + begin) * stride + at, stride, m, each, room);
        const Floats k = floats_of(first_key, stride, keys, each, key_room);
        const Floats v =
            floats_of(first_key + width, stride, keys, each, key_room + shape.length * each);
        gemm(false, true, m, keys, each, scale, q.data, q.stride, k.data, k.stride, 0.0F, scores,
             keys);
        for (std::int64_t i = begin; i < end; ++i) {
          log_sum_exp[(first_row + i) * shape.heads + head] =
              softmax_row(scores + (i - begin) * keys, keys, start[i] - low, i - low);
        }
        gemm(false, false, m, each, keys, 1.0F, scores, keys, v.data, v.stride, 0.0F, sums, each);
        round_to(sums, m, each, out + (first_row + begin) * width + at, width);
      }
    }
  }
}

/// What the backward pass of attention reads and writes.
template <class T>
struct BackwardTensors {
  const T *qkv, *out, *d_out;
  const std::int32_t* starts;
  const float* log_sum_exp;
  T* d_qkv;
};

/// weights: scores -> weights; d_weights: their gradients -> those of q k, of the rows [begin, end)
/// of a sequence whose keys begin at `low`.
template <class T>
void softmax_backward(const BackwardTensors<T>& t, const CausalShape& shape, std::int64_t first_row,
                      std::int64_t head, std::int64_t begin, std::int64_t end, std::int64_t low,
                      float* weights, float* d_weights) {
  const std::int64_t each = shape.head_width, width = shape.heads * each, keys = end - low;
  const float scale = 1.0F / std::sqrt(static_cast<float>(each));
  for (std::int64_t i = begin; i < end; ++i) {
    float* w = weights + (i - begin) * keys;
    float* d = d_weights + (i - begin) * keys;
    const T* o = t.out + (first_row + i) * width + head * each;
    const T* d_row = t.d_out + (first_row + i) * width + head * each;
    float mean = 0.0F;  // of the weights' gradients, under the weights
#pragma omp simd reduction(+ : mean)
    for (std::int64_t j = 0; j < each; ++j) mean += to_float(o[j]) * to_float(d_row[j]);
    const float log_sum = t.log_sum_exp[(first_row + i) * shape.heads + head];
    const std::int64_t first = t.starts[first_row + i] - low, last = i - low;
#pragma omp simd
    for (std::int64_t j = first; j <= last; ++j) {
      w[j] = fast_exp(w[j] - log_sum);
      d[j] = w[j] * (d[j] - mean) * scale;
    }
    std::fill(w, w + first, 0.0F);
    std::fill(w + last + 1, w + keys, 0.0F);
    std::fill(d, d + first, 0.0F);
    std::fill(d + last + 1, d + keys, 0.0F);
  }
}

template <class T>
void attend_backward(const CausalShape& shape, const BackwardTensors<T>& t) {
  const std::int64_t each = shape.head_width, width = shape.heads * each, stride = 3 * width;
  const std::int64_t length = shape.length;
  const float scale = 1.0F / std::sqrt(static_cast<float>(each));
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t sequence = 0; sequence < shape.sequences; ++sequence) {
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const std::int64_t first_row = sequence * length, at = head * each;
      const std::int32_t* start = t.starts + first_row;
      float* weights = scratch(2 * kQueryTile * length + (4 * length + 3 * kQueryTile) * each);
      float* d_weights = weights + kQueryTile * length;
      float* d_k = d_weights + kQueryTile * length;
      float* d_v = d_k + length * each;
      float* key_room = d_v + length * each;
      float* query_room = key_room + 2 * length * each;
      float* d_q = query_room + 2 * kQueryTile * each;
      std::fill_n(d_k, 2 * length * each, 0.0F);
      const T* first_key = t.qkv + first_row * stride + width + at;
      const Floats all_k = floats_of(first_key, stride, length, each, key_room);
      const Floats all_v =
          floats_of(first_key + width, stride, length, each, key_room + length * each);
      for (std::int64_t begin = 0; begin < length; begin += kQueryTile) {
        const std::int64_t end = std::min(length, begin + kQueryTile), m = end - begin;
        const std::int64_t low = smallest_start(start, begin, end), keys = end - low;
        const Floats q =
            floats_of(t.qkv + (first_row + begin) * stride + at, stride, m, each, query_room);
        const Floats d_o = floats_of(t.d_out + (first_row + begin) * width + at, width, m, each,
                                     query_room + kQueryTile * each);
        const float* k = all_k.data + low * all_k.stride;
        const float* v = all_v.data + low * all_v.stride;
        gemm(false, true, m, keys, each, scale, q.data, q.stride, k, all_k.stride, 0.0F, weights,
             keys);
        gemm(false, true, m, keys, each, 1.0F, d_o.data, d_o.stride, v, all_v.stride, 0.0F,
             d_weights, keys);
        softmax_backward(t, shape, first_row, head, begin, end, low, weights, d_weights);
        gemm(false, false, m, each, keys, 1.0F, d_weights, keys, k, all_k.stride, 0.0F, d_q, each);
        round_to(d_q, m, each, t.d_qkv + (first_row + begin) * stride + at, stride);
        gemm(true, false, keys, each, m, 1.0F, d_weights, keys, q.data, q.stride, 1.0F,
             d_k + low * each, each);
        gemm(true, false, keys, each, m, 1.0F, weights, keys, d_o.data, d_o.stride, 1.0F,
             d_v + low * each, each);
      }
      T* d_first_key = t.d_qkv + first_row * stride + width + at;
      round_to(d_k, length, each, d_first_key, stride);
      round_to(d_v, length, each, d_first_key + width, stride);
    }
  }
}

template <class T>
void attend_cached(const Tensor& qkv, const Tensor& keys_values, std::int64_t past,
                   std::int64_t heads, std::int64_t head_width, const Tensor& out,
                   std::int64_t rows) {
  const std::int64_t width = heads * head_width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_width));
  const T* all = qkv.data<T>();
  T* cache = keys_values.data<T>();
  T* output = out.data<T>();
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* from = all + i * 3 * width + width;
    std::copy(from, from + 2 * width, cache + (past + i) * 2 * width);
  }
  const std::int64_t tiles = (rows + kQueryTile - 1) / kQueryTile;
  // Waking threads costs more than the few products of a short past.
  const bool is_worth_threads = rows * (past + rows) * width > kThreadsFrom;
#pragma omp parallel for collapse(2) schedule(dynamic) if (is_worth_threads)
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t begin = tile * kQueryTile, end = std::min(rows, begin + kQueryTile);
      const T* first_query = all + begin * 3 * width + head * head_width;
      const T* first_key = cache + head * head_width;
      T* o = output + begin * width + head * head_width;
      const std::int64_t keys = past + end, m = end - begin;
      float* scores = scratch(kQueryTile * keys + 2 * (kQueryTile + keys) * head_width);
      float* sums = scores + kQueryTile * keys;
      if (m < kGemmFrom) {
        for (std::int64_t i = 0; i < m; ++i)
          attend_one<T>(
              {first_query + i * 3 * width, first_key, 2 * width, head_width, past + begin + i + 1},
              scale, scores, sums, o + i * width);
        continue;
      }
      float* query_room = sums + kQueryTile * head_width;
      float* key_room = query_room + kQueryTile * head_width;
      const Floats q = floats_of(first_query, 3 * width, m, head_width, query_room);
      const Floats k = floats_of(first_key, 2 * width, keys, head_width, key_room);
      const Floats v =
          floats_of(first_key + width, 2 * width, keys, head_width, key_room + keys * head_width);
      gemm(false, true, m, keys, head_width, scale, q.data, q.stride, k.data, k.stride, 0.0F,
           scores, keys);
      for (std::int64_t i = begin; i < end; ++i)
        softmax_row(scores + (i - begin) * keys, keys, 0, past + i);
      gemm(false, false, m, head_width, keys, 1.0F, scores, keys, v.data, v.stride, 0.0F, sums,
           head_width);
      round_to(sums, m, head_width, o, width);
    }
  }
}

template <class T>
void attend_backward_of(const CausalShape& shape, const Tensor& qkv, const Tensor& attention_start,
                        const Tensor& out, const Tensor& log_sum_exp, const Tensor& d_out,
                        const Tensor& d_qkv) {
  attend_backward(shape, BackwardTensors<T>{qkv.data<T>(), out.data<T>(), d_out.data<T>(),
                                            attention_start.data<std::int32_t>(),
                                            log_sum_exp.data<float>(), d_qkv.data<T>()});
}

/// done(sequence, head) for all of them, each on one thread.
template <class Done>
void for_heads(const CausalShape& shape, const Done& done) {
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t sequence = 0; sequence < shape.sequences; ++sequence)
    for (std::int64_t head = 0; head < shape.heads; ++head) done(sequence, head);
}

}  // namespace

void CpuBackend::rope(const Tensor& qkv, const Tensor& positions, std::int64_t heads,
                      std::int64_t head_width, bool inverse, std::int64_t rows) {
  (is_bf16(qkv) ? rotate<Bf16> : rotate<float>)(qkv, positions, heads, head_width, inverse, rows);
}

void CpuBackend::causal_attention(const CausalShape& shape, const Tensor& qkv,
                                  const Tensor& attention_start, const Tensor& out,
                                  const Tensor& log_sum_exp) {
  const std::int32_t* starts = attention_start.data<std::int32_t>();
  if (is_bf16(qkv) && has_bf16_products()) {
    const PackedAttention packed(shape, qkv.data<Bf16>(), starts);
    for_heads(shape, [&](std::int64_t sequence, std::int64_t head) HWY_ATTR {
      packed.forward(sequence, head, out.data<Bf16>(), log_sum_exp.data<float>());
    });
    return;
  }
  if (is_bf16(qkv))
    attend(shape, qkv.data<Bf16>(), starts, out.data<Bf16>(), log_sum_exp.data<float>());
  else
    attend(shape, qkv.data<float>(), starts, out.data<float>(), log_sum_exp.data<float>());
}

void CpuBackend::causal_attention_backward(const CausalShape& shape, const Tensor& qkv,
                                           const Tensor& attention_start, const Tensor& out,
                                           const Tensor& log_sum_exp, const Tensor& d_out,
                                           const Tensor& d_qkv) {
  if (is_bf16(qkv) && has_bf16_products()) {
    const PackedAttention packed(shape, qkv.data<Bf16>(), attention_start.data<std::int32_t>());
    const PackedAttention::Saved saved{out.data<Bf16>(), d_out.data<Bf16>(),
                                       log_sum_exp.data<float>()};
    for_heads(shape, [&](std::int64_t sequence, std::int64_t head)
                         HWY_ATTR { packed.backward(sequence, head, saved, d_qkv.data<Bf16>()); });
    return;
  }
  (is_bf16(qkv) ? attend_backward_of<Bf16> : attend_backward_of<float>)(shape, qkv, attention_start,
                                                                        out, log_sum_exp, d_out,
                                                                        d_qkv);
}

void CpuBackend::cached_attention(const Tensor& qkv, const Tensor& keys_values, std::int64_t past,
                                  std::int64_t heads, std::int64_t head_width, const Tensor& out,
                                  std::int64_t rows) {
  (is_bf16(qkv) ? attend_cached<Bf16> : attend_cached<float>)(qkv, keys_values, past, heads,
                                                              head_width, out, rows);
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
