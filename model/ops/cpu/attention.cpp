#include <algorithm>
#include <cmath>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/attention.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/causal_attention.h"
#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/matrix_product.h"
#include "model/ops/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

constexpr std::int64_t kQueryTile = 64;
constexpr std::int64_t kPackFrom = 8;           // queries, of attention with a cache
constexpr std::int64_t kThreadsFrom = 1 << 17;  // products of queries and keys, over all heads

/// Scratch of the calling thread.
float* scratch(std::int64_t elements) {
  static thread_local Scratch storage;
  return storage.get<float>(elements);
}

template <class T>
void round_to(const float* from, std::int64_t n, T* to) {
#pragma omp simd
  for (std::int64_t e = 0; e < n; ++e) to[e] = from_float<T>(from[e]);
}

/// scores[0 .. n), of which the first `count` are attended to -> weights; the others are 0.
void softmax_row(float* scores, std::int64_t n, std::int64_t count) {
  float largest = scores[0];
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = 0; j < count; ++j) largest = scores[j] > largest ? scores[j] : largest;
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < count; ++j) {
    scores[j] = fast_exp(scores[j] - largest);
    sum += scores[j];
  }
  const float factor = 1.0F / sum;
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j) scores[j] *= factor;
  std::fill(scores + count, scores + n, 0.0F);
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
  softmax_row(scores, head.count, head.count);
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
  round_to(sums, width, out);
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
      const std::int64_t columns = padded(head_width, kPanelColumns);
      const std::int64_t stride = padded(keys, kPanelColumns);
      const std::int64_t key_elements = packed_elements<float>(head_width, keys);
      float* scores = scratch(kQueryTile * (stride + columns + head_width) + key_elements +
                              packed_elements<float>(keys, head_width));
      float* sums = scores + kQueryTile * stride;
      if (m < kPackFrom) {
        for (std::int64_t i = 0; i < m; ++i)
          attend_one<T>(
              {first_query + i * 3 * width, first_key, 2 * width, head_width, past + begin + i + 1},
              scale, scores, sums, o + i * width);
        continue;
      }
      float* query_room = sums + kQueryTile * columns;
      float* key_room = query_room + kQueryTile * head_width;
      const auto k = pack_right_columns<float>(first_key, 2 * width, head_width, keys, key_room);
      const auto v = pack_right_rows<float>(first_key + width, 2 * width, keys, head_width,
                                            key_room + key_elements);
      multiply_panels(left_rows(first_query, 3 * width, m, head_width, query_room), m, k, keys,
                      head_width, scores, stride, false);
      for (std::int64_t i = 0; i < m; ++i) {
        float* row = scores + i * stride;
        for (std::int64_t j = 0; j <= past + begin + i; ++j) row[j] *= scale;
        softmax_row(row, keys, past + begin + i + 1);
      }
      multiply_panels(LeftRows<float>::plain(scores, stride), m, v, head_width, keys, sums, columns,
                      false);
      for (std::int64_t i = 0; i < m; ++i) round_to(sums + i * columns, head_width, o + i * width);
    }
  }
}

/// done(sequence, head) for all of them, each on one thread.
template <class Done>
void for_heads(const CausalShape& shape, const Done& done) {
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t sequence = 0; sequence < shape.sequences; ++sequence)
    for (std::int64_t head = 0; head < shape.heads; ++head) done(sequence, head);
}

template <class T>
void attend(const CausalShape& shape, const Tensor& qkv, const Tensor& attention_start,
            const Tensor& out, const Tensor& log_sum_exp) {
  with_product_type<T>([&](auto element) HWY_ATTR {
    const CausalAttention<T, decltype(element)> attention(shape, qkv.data<T>(),
                                                          attention_start.data<std::int32_t>());
    for_heads(shape, [&](std::int64_t sequence, std::int64_t head) HWY_ATTR {
      attention.forward(sequence, head, out.data<T>(), log_sum_exp.data<float>());
    });
  });
}

template <class T>
void attend_backward(const CausalShape& shape, const Tensor& qkv, const Tensor& attention_start,
                     const Tensor& out, const Tensor& log_sum_exp, const Tensor& d_out,
                     const Tensor& d_qkv) {
  with_product_type<T>([&](auto element) HWY_ATTR {
    using Attention = CausalAttention<T, decltype(element)>;
    const Attention attention(shape, qkv.data<T>(), attention_start.data<std::int32_t>());
    const typename Attention::Saved saved{out.data<T>(), d_out.data<T>(),
                                          log_sum_exp.data<float>()};
    for_heads(shape, [&](std::int64_t sequence, std::int64_t head)
                         HWY_ATTR { attention.backward(sequence, head, saved, d_qkv.data<T>()); });
  });
}

}  // namespace

void CpuBackend::rope(const Tensor& qkv, const Tensor& positions, std::int64_t heads,
                      std::int64_t head_width, bool inverse, std::int64_t rows) {
  (is_bf16(qkv) ? rotate<Bf16> : rotate<float>)(qkv, positions, heads, head_width, inverse, rows);
}

void CpuBackend::causal_attention(const CausalShape& shape, const Tensor& qkv,
                                  const Tensor& attention_start, const Tensor& out,
                                  const Tensor& log_sum_exp) {
  (is_bf16(qkv) ? attend<Bf16> : attend<float>)(shape, qkv, attention_start, out, log_sum_exp);
}

void CpuBackend::causal_attention_backward(const CausalShape& shape, const Tensor& qkv,
                                           const Tensor& attention_start, const Tensor& out,
                                           const Tensor& log_sum_exp, const Tensor& d_out,
                                           const Tensor& d_qkv) {
  (is_bf16(qkv) ? attend_backward<Bf16> : attend_backward<float>)(shape, qkv, attention_start, out,
                                                                  log_sum_exp, d_out, d_qkv);
}

void CpuBackend::cached_attention(const Tensor& qkv, const Tensor& keys_values, std::int64_t past,
                                  std::int64_t heads, std::int64_t head_width, const Tensor& out,
                                  std::int64_t rows) {
  (is_bf16(qkv) ? attend_cached<Bf16> : attend_cached<float>)(qkv, keys_values, past, heads,
                                                              head_width, out, rows);
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
