#include <algorithm>
#include <cmath>
#include <vector>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/gemm.h"
#include "model/ops/cpu/vector_math.h"

namespace scone {
namespace {

constexpr std::int64_t kQueryTile = 64;
constexpr std::int64_t kGemmFrom = 8;           // queries, of attention with a cache
constexpr std::int64_t kThreadsFrom = 1 << 17;  // products of queries and keys, over all heads

/// Scratch of the calling thread, which only grows.
float* scratch(std::int64_t elements) {
  static thread_local std::vector<float> storage;
  if (storage.size() < static_cast<std::size_t>(elements)) {
    storage.resize(static_cast<std::size_t>(elements));
  }
  return storage.data();
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
struct CachedHead {
  const float *query, *keys;
  std::int64_t stride, head_width, count;
};

/// Scores and output are summed over four keys at a time, so that q and out are read once for them.
void attend_one(const CachedHead& head, float scale, float* scores, float* out) {
  const float* q = head.query;
  const std::int64_t stride = head.stride, width = head.head_width, whole = head.count / 4 * 4;
  for (std::int64_t j = 0; j < whole; j += 4) {
    const float* k = head.keys + j * stride;
    float a = 0.0F, b = 0.0F, c = 0.0F, d = 0.0F;
#pragma omp simd reduction(+ : a, b, c, d)
    for (std::int64_t e = 0; e < width; ++e) {
      a += q[e] * k[e];
      b += q[e] * k[e + stride];
      c += q[e] * k[e + 2 * stride];
      d += q[e] * k[e + 3 * stride];
    }
    scores[j] = a * scale;
    scores[j + 1] = b * scale;
    scores[j + 2] = c * scale;
    scores[j + 3] = d * scale;
  }
  for (std::int64_t j = whole; j < head.count; ++j) {
    const float* k = head.keys + j * stride;
    float dot = 0.0F;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t e = 0; e < width; ++e) dot += q[e] * k[e];
    scores[j] = dot * scale;
  }
  softmax_row(scores, head.count, 0, head.count - 1);
  std::fill(out, out + width, 0.0F);
  for (std::int64_t j = 0; j < whole; j += 4) {
    const float* v = head.keys + j * stride + stride / 2;
    const float a = scores[j], b = scores[j + 1], c = scores[j + 2], d = scores[j + 3];
#pragma omp simd
    for (std::int64_t e = 0; e < width; ++e)
      out[e] += a * v[e] + b * v[e + stride] + c * v[e + 2 * stride] + d * v[e + 3 * stride];
  }
  for (std::int64_t j = whole; j < head.count; ++j) {
    const float* v = head.keys + j * stride + stride / 2;
#pragma omp simd
    for (std::int64_t e = 0; e < width; ++e) out[e] += scores[j] * v[e];
  }
}

}  // namespace

void CpuBackend::rope(const Tensor& qkv, const Tensor& positions, std::int64_t heads,
                      std::int64_t head_width, bool inverse, std::int64_t rows) {
  const std::int64_t width = heads * head_width, half = head_width / 2;
  float* values = qkv.data<float>();
  const std::int32_t* position = positions.data<std::int32_t>();
  static thread_local std::vector<double> frequency_storage;
  frequency_storage.resize(static_cast<std::size_t>(half));
  double* const frequency = frequency_storage.data();
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
      float* low = values + i * 3 * width + head * head_width;
      float* high = low + half;
#pragma omp simd
      for (std::int64_t j = 0; j < half; ++j) {
        const float a = low[j], b = high[j];
        low[j] = a * cosine[j] - b * sine[j];
        high[j] = b * cosine[j] + a * sine[j];
      }
    }
  }
}

void CpuBackend::causal_attention(const CausalShape& shape, const Tensor& qkv,
                                  const Tensor& attention_start, const Tensor& out,
                                  const Tensor& log_sum_exp) {
  const std::int64_t width = shape.heads * shape.head_width, stride = 3 * width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(shape.head_width));
  const float* all = qkv.data<float>();
  const std::int32_t* starts = attention_start.data<std::int32_t>();
  float* output = out.data<float>();
  float* saved = log_sum_exp.data<float>();
  const std::int64_t tiles = (shape.length + kQueryTile - 1) / kQueryTile;
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (std::int64_t sequence = 0; sequence < shape.sequences; ++sequence) {
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const std::int64_t begin = tile * kQueryTile;
        const std::int64_t end = std::min(shape.length, begin + kQueryTile);
        const std::int64_t first_row = sequence * shape.length;
        const std::int32_t* start = starts + first_row;
        const std::int64_t low = smallest_start(start, begin, end), keys = end - low;
        float* scores = scratch(kQueryTile * shape.length);
        const float* q = all + (first_row + begin) * stride + head * shape.head_width;
        const float* k = all + (first_row + low) * stride + width + head * shape.head_width;
        gemm(false, true, end - begin, keys, shape.head_width, scale, q, stride, k, stride, 0.0F,
             scores, keys);
        for (std::int64_t i = begin; i < end; ++i) {
          saved[(first_row + i) * shape.heads + head] =
              softmax_row(scores + (i - begin) * keys, keys, start[i] - low, i - low);
        }
        gemm(false, false, end - begin, shape.head_width, keys, 1.0F, scores, keys, k + width,
             stride, 0.0F, output + (first_row + begin) * width + head * shape.head_width, width);
      }
    }
  }
}

void CpuBackend::causal_attention_backward(const CausalShape& shape, const Tensor& qkv,
                                           const Tensor& attention_start, const Tensor& out,
                                           const Tensor& log_sum_exp, const Tensor& d_out,
                                           const Tensor& d_qkv) {
  const std::int64_t head_width = shape.head_width;
  const std::int64_t width = shape.heads * head_width, stride = 3 * width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_width));
  const float* all = qkv.data<float>();
  const std::int32_t* starts = attention_start.data<std::int32_t>();
  const float* output = out.data<float>();
  const float* saved = log_sum_exp.data<float>();
  const float* d_output = d_out.data<float>();
  float* d_all = d_qkv.data<float>();
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t sequence = 0; sequence < shape.sequences; ++sequence) {
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const std::int64_t first_row = sequence * shape.length, at = head * head_width;
      const std::int32_t* start = starts + first_row;
      for (std::int64_t i = 0; i < shape.length; ++i) {
        float* d = d_all + (first_row + i) * stride + at;
        std::fill(d + width, d + width + head_width, 0.0F);
        std::fill(d + 2 * width, d + 2 * width + head_width, 0.0F);
      }
      for (std::int64_t begin = 0; begin < shape.length; begin += kQueryTile) {
        const std::int64_t end = std::min(shape.length, begin + kQueryTile), m = end - begin;
        const std::int64_t low = smallest_start(start, begin, end), keys = end - low;
        float* weights = scratch(2 * kQueryTile * shape.length);
        float* d_weights = weights + kQueryTile * shape.length;
        const float* q = all + (first_row + begin) * stride + at;
        const float* k = all + (first_row + low) * stride + width + at;
        const float* d_o = d_output + (first_row + begin) * width + at;
        float* d_k = d_all + (first_row + low) * stride + width + at;
        gemm(false, true, m, keys, head_width, scale, q, stride, k, stride, 0.0F, weights, keys);
        gemm(false, true, m, keys, head_width, 1.0F, d_o, width, k + width, stride, 0.0F, d_weights,
             keys);
        for (std::int64_t i = begin; i < end; ++i) {
          float* w = weights + (i - begin) * keys;
          float* d = d_weights + (i - begin) * keys;
          const float* o = output + (first_row + i) * width + at;
          const float* d_row = d_output + (first_row + i) * width + at;
          float mean = 0.0F;  // of the weights' gradients, under the weights
#pragma omp simd reduction(+ : mean)
          for (std::int64_t j = 0; j < head_width; ++j) mean += o[j] * d_row[j];
          const float log_sum = saved[(first_row + i) * shape.heads + head];
          const std::int64_t first = start[i] - low, last = i - low;
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
        gemm(false, false, m, head_width, keys, 1.0F, d_weights, keys, k, stride, 0.0F,
             d_all + (first_row + begin) * stride + at, stride);
        gemm(true, false, keys, head_width, m, 1.0F, d_weights, keys, q, stride, 1.0F, d_k, stride);
        gemm(true, false, keys, head_width, m, 1.0F, weights, keys, d_o, width, 1.0F, d_k + width,
             stride);
      }
    }
  }
}

void CpuBackend::cached_attention(const Tensor& qkv, const Tensor& keys_values, std::int64_t past,
                                  std::int64_t heads, std::int64_t head_width, const Tensor& out,
                                  std::int64_t rows) {
  const std::int64_t width = heads * head_width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_width));
  const float* all = qkv.data<float>();
  float* cache = keys_values.data<float>();
  float* output = out.data<float>();
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* from = all + i * 3 * width + width;
    std::copy(from, from + 2 * width, cache + (past + i) * 2 * width);
  }
  const std::int64_t tiles = (rows + kQueryTile - 1) / kQueryTile;
  // Waking threads costs more than the few products of a short past.
  const bool is_worth_threads = rows * (past + rows) * width > kThreadsFrom;
#pragma omp parallel for collapse(2) schedule(dynamic) if (is_worth_threads)
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t begin = tile * kQueryTile, end = std::min(rows, begin + kQueryTile);
      const float* q = all + begin * 3 * width + head * head_width;
      const float* k = cache + head * head_width;
      float* o = output + begin * width + head * head_width;
      const std::int64_t keys = past + end;
      float* scores = scratch(kQueryTile * keys);
      if (end - begin < kGemmFrom) {
        for (std::int64_t i = 0; i < end - begin; ++i)
          attend_one({q + i * 3 * width, k, 2 * width, head_width, past + begin + i + 1}, scale,
                     scores, o + i * width);
        continue;
      }
      gemm(false, true, end - begin, keys, head_width, scale, q, 3 * width, k, 2 * width, 0.0F,
           scores, keys);
      for (std::int64_t i = begin; i < end; ++i)
        softmax_row(scores + (i - begin) * keys, keys, 0, past + i);
      gemm(false, false, end - begin, head_width, keys, 1.0F, scores, keys, k + width, 2 * width,
           0.0F, o, width);
    }
  }
}

}  // namespace scone
