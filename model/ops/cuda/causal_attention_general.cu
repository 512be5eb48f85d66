// Causal attention of any type and head width, in fp32 arithmetic: tiles of queries against tiles
// of keys in shared memory.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <stdexcept>
#include <string>

#include "model/ops/cuda/causal_attention_kernels.h"
#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

/// kTile x kTile scores; a thread computes kEach x kEach of them.
template <int kTile_>
struct Tiles {
  static constexpr int kTile = kTile_, kEach = kTile >= 32 ? 2 : 1, kSide = kTile / kEach;
  static constexpr int kThreads = kSide * kSide;
};

/// Rows [begin, begin + kTile) as fp32, zeros from `end` on.
template <class Shape, class T>
__device__ __forceinline__ void load_rows(float* tile, const T* source, std::int64_t stride,
                                          int begin, int end, int width) {
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kTile * width; i += Shape::kThreads) {
    const int row = i / width, column = i % width;
    tile[row * (width + 1) + column] =
        begin + row < end ? to_float(source[(begin + row) * stride + column]) : 0.0F;
  }
}

template <class Shape, class T>
__device__ __forceinline__ void store_rows(const float* tile, T* target, std::int64_t stride,
                                           int begin, int end, int width, float factor) {
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kTile * width; i += Shape::kThreads) {
    const int row = i / width, column = i % width;
    if (begin + row < end) {
      target[(begin + row) * stride + column] =
          from_float<T>(tile[row * (width + 1) + column] * factor);
    }
  }
}

__device__ __forceinline__ float dot(const float* a, const float* b, int width) {
  float sum = 0.0F;
  for (int i = 0; i < width; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

/// tile[row][column] = tile[row][column] * factor(row) + sum over i < kTile of weight(i, row) *
/// source[i][column].
template <class Shape, class Factor, class Weight>
__device__ __forceinline__ void accumulate(float* tile, const float* source, int width,
                                           const Factor& factor, const Weight& weight) {
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kTile * width; i += Shape::kThreads) {
    const int row = i / width, column = i % width;
    float sum = tile[row * (width + 1) + column] * factor(row);
#pragma unroll
    for (int j = 0; j < Shape::kTile; ++j) {
      sum = fmaf(weight(j, row), source[j * (width + 1) + column], sum);
    }
    tile[row * (width + 1) + column] = sum;
  }
}

/// Calls f(query, key) for each of the scores that the thread computes.
template <class Shape, class Function>
__device__ __forceinline__ void for_each_score(const Function& f) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int a = 0; a < Shape::kEach; ++a) {
#pragma unroll
    for (int b = 0; b < Shape::kEach; ++b) {
      f(thread / Shape::kSide + a * Shape::kSide, thread % Shape::kSide + b * Shape::kSide);
    }
  }
}

template <class Shape>
__device__ __forceinline__ int smallest_start(const std::int32_t* start, int begin, int end) {
  int low = INT_MAX;
  for (int i = begin; i < min(begin + Shape::kTile, end); ++i) low = min(low, start[i]);
  return low;
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    causal_attention_general_forward(CausalTensors<T> tensors, CausalSizes sizes, int tiles) {
  constexpr int kTile = Shape::kTile;
  const int width = sizes.head_width, row_floats = width + 1, length = sizes.length;
  float* const q = dynamic_shared<float>();
  float* const k = q + kTile * row_floats;
  float* const v = k + kTile * row_floats;
  float* const o = v + kTile * row_floats;
  float* const scores = o + kTile * row_floats;  // [kTile][kTile + 1]
  float* const largest = scores + kTile * (kTile + 1);
  float* const sums = largest + kTile;
  float* const factors = sums + kTile;
  const CausalPlace place = causal_place(sizes, tiles);
  const int thread = static_cast<int>(threadIdx.x), begin = place.tile * kTile;
  const std::int64_t stride = 3 * sizes.width, column = place.head * width;
  const T* const all = tensors.qkv + place.first_row * stride + column;
  const std::int32_t* const start = tensors.start + place.first_row;
  load_rows<Shape>(q, all, stride, begin, length, width);
  for (int i = thread; i < kTile * row_floats; i += Shape::kThreads) o[i] = 0.0F;
  if (thread < kTile) {
    largest[thread] = -INFINITY;
    sums[thread] = 0.0F;
  }
  const int first = smallest_start<Shape>(start, begin, length) / kTile;
  for (int tile = first; tile <= place.tile; ++tile) {
    const int key_begin = tile * kTile;
    __syncthreads();  // the tile before is used up
    load_rows<Shape>(k, all + sizes.width, stride, key_begin, length, width);
    load_rows<Shape>(v, all + 2 * sizes.width, stride, key_begin, length, width);
    __syncthreads();
    for_each_score<Shape>([&](int query, int key) {
      const int i = begin + query, j = key_begin + key;
      const bool seen = i < length && j <= i && j >= start[i];
      scores[query * (kTile + 1) + key] =
          seen ? sizes.scale * dot(q + query * row_floats, k + key * row_floats, width) : -INFINITY;
    });
    __syncthreads();
    if (thread < kTile) {
      float* const row = scores + thread * (kTile + 1);
      float high = largest[thread], sum = 0.0F;
      for (int j = 0; j < kTile; ++j) high = fmaxf(high, row[j]);
      const float base = high == -INFINITY ? 0.0F : high;  // keeps infinities apart
      for (int j = 0; j < kTile; ++j) {
        row[j] = expf(row[j] - base);
        sum += row[j];
      }
      factors[thread] = expf(largest[thread] - base);
      sums[thread] = sums[thread] * factors[thread] + sum;
      largest[thread] = high;
    }
    __syncthreads();
    accumulate<Shape>(
        o, v, width, [&](int row) { return factors[row]; },
        [&](int j, int row) { return scores[row * (kTile + 1) + j]; });
  }
  __syncthreads();
  for (int i = thread; i < kTile * width; i += Shape::kThreads) {
    const int row = i / width, c = i % width;
    if (begin + row < length) {
      tensors.out[(place.first_row + begin + row) * sizes.width + column + c] =
          from_float<T>(o[row * row_floats + c] / sums[row]);
    }
  }
  if (thread < kTile && begin + thread < length) {
    tensors.log_sum_exp[(place.first_row + begin + thread) * sizes.heads + place.head] =
        largest[thread] + logf(sums[thread]);
  }
}

/// What both backward kernels compute of a tile of queries and one of keys: weights and their
/// scores' gradients, [kTile][kTile + 1], without the scale.
template <class Shape>
__device__ __forceinline__ void weights_and_gradients(const float* q, const float* k,
                                                      const float* v, const float* d_out,
                                                      const float* statistics,
                                                      const std::int32_t* start, int begin,
                                                      int key_begin, const CausalSizes& sizes,
                                                      float* weights, float* d_scores) {
  const int width = sizes.head_width, row_floats = width + 1;
  for_each_score<Shape>([&](int query, int key) {
    const int i = begin + query, j = key_begin + key;
    float weight = 0.0F, d_score = 0.0F;
    if (i < sizes.length && j <= i && j >= start[i]) {
      weight = expf(sizes.scale * dot(q + query * row_floats, k + key * row_floats, width) -
                    statistics[statistics_offset(i)]);
      d_score = weight * (dot(d_out + query * row_floats, v + key * row_floats, width) -
                          statistics[statistics_offset(i) + kStartTile]);
    }
    weights[query * (Shape::kTile + 1) + key] = weight;
    d_scores[query * (Shape::kTile + 1) + key] = d_score;
  });
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    causal_attention_general_keys(CausalTensors<T> tensors, CausalSizes sizes, int tiles) {
  constexpr int kTile = Shape::kTile;
  const int width = sizes.head_width, row_floats = width + 1, length = sizes.length;
  float* const q = dynamic_shared<float>();
  float* const k = q + kTile * row_floats;
  float* const v = k + kTile * row_floats;
  float* const d_out = v + kTile * row_floats;
  float* const d_k = d_out + kTile * row_floats;
  float* const d_v = d_k + kTile * row_floats;
  float* const weights = d_v + kTile * row_floats;
  float* const d_scores = weights + kTile * (kTile + 1);
  const CausalPlace place = causal_place(sizes, tiles);
  const int thread = static_cast<int>(threadIdx.x), key_begin = place.tile * kTile;
  const std::int64_t stride = 3 * sizes.width, column = place.head * width;
  const T* const all = tensors.qkv + place.first_row * stride + column;
  const T* const d_all = tensors.d_out + place.first_row * sizes.width + column;
  const std::int32_t* const start = tensors.start + place.first_row;
  const float* const statistics =
      statistics_of(tensors.workspace, place.sequence * sizes.heads + place.head);
  load_rows<Shape>(k, all + sizes.width, stride, key_begin, length, width);
  load_rows<Shape>(v, all + 2 * sizes.width, stride, key_begin, length, width);
  for (int i = thread; i < kTile * row_floats; i += Shape::kThreads) d_k[i] = d_v[i] = 0.0F;
  for (int tile = place.tile; tile < tiles; ++tile) {
    const int begin = tile * kTile;
    if (smallest_start<Shape>(start, begin, length) >= key_begin + kTile) continue;
    __syncthreads();  // the tile before is used up
    load_rows<Shape>(q, all, stride, begin, length, width);
    load_rows<Shape>(d_out, d_all, sizes.width, begin, length, width);
    __syncthreads();
    weights_and_gradients<Shape>(q, k, v, d_out, statistics, start, begin, key_begin, sizes,
                                 weights, d_scores);
    __syncthreads();
    const auto one = [](int) { return 1.0F; };
    accumulate<Shape>(d_v, d_out, width, one,
                      [&](int i, int key) { return weights[i * (kTile + 1) + key]; });
    accumulate<Shape>(d_k, q, width, one,
                      [&](int i, int key) { return d_scores[i * (kTile + 1) + key]; });
  }
  __syncthreads();
  T* const d_target = tensors.d_qkv + place.first_row * stride + column + sizes.width;
  store_rows<Shape>(d_k, d_target, stride, key_begin, length, width, sizes.scale);
  store_rows<Shape>(d_v, d_target + sizes.width, stride, key_begin, length, width, 1.0F);
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    causal_attention_general_queries(CausalTensors<T> tensors, CausalSizes sizes, int tiles) {
  constexpr int kTile = Shape::kTile;
  const int width = sizes.head_width, row_floats = width + 1, length = sizes.length;
  float* const q = dynamic_shared<float>();
  float* const k = q + kTile * row_floats;
  float* const v = k + kTile * row_floats;
  float* const d_out = v + kTile * row_floats;
  float* const d_q = d_out + kTile * row_floats;
  float* const weights = d_q + kTile * row_floats;
  float* const d_scores = weights + kTile * (kTile + 1);
  const CausalPlace place = causal_place(sizes, tiles);
  const int thread = static_cast<int>(threadIdx.x), begin = place.tile * kTile;
  const std::int64_t stride = 3 * sizes.width, column = place.head * width;
  const T* const all = tensors.qkv + place.first_row * stride + column;
  const std::int32_t* const start = tensors.start + place.first_row;
  const float* const statistics =
      statistics_of(tensors.workspace, place.sequence * sizes.heads + place.head);
  load_rows<Shape>(q, all, stride, begin, length, width);
  load_rows<Shape>(d_out, tensors.d_out + place.first_row * sizes.width + column, sizes.width,
                   begin, length, width);
  for (int i = thread; i < kTile * row_floats; i += Shape::kThreads) d_q[i] = 0.0F;
  const int first = smallest_start<Shape>(start, begin, length) / kTile;
  for (int tile = first; tile <= place.tile; ++tile) {
    const int key_begin = tile * kTile;
    __syncthreads();  // the tile before is used up
    load_rows<Shape>(k, all + sizes.width, stride, key_begin, length, width);
    load_rows<Shape>(v, all + 2 * sizes.width, stride, key_begin, length, width);
    __syncthreads();
    weights_and_gradients<Shape>(q, k, v, d_out, statistics, start, begin, key_begin, sizes,
                                 weights, d_scores);
    __syncthreads();
    accumulate<Shape>(
        d_q, k, width, [](int) { return 1.0F; },
        [&](int j, int row) { return d_scores[row * (kTile + 1) + j]; });
  }
  __syncthreads();
  store_rows<Shape>(d_q, tensors.d_qkv + place.first_row * stride + column, stride, begin, length,
                    width, sizes.scale);
}

constexpr std::size_t kMostSharedBytes = std::size_t{96} * 1024;

/// `head_tiles` tiles of rows, `score_tiles` of scores and 3 numbers a row.
template <int kTile>
std::size_t shared_bytes(std::int64_t head_width, int head_tiles, int score_tiles) {
  return static_cast<std::size_t>(4 * kTile *
                                  (head_tiles * (head_width + 1) + score_tiles * (kTile + 1) + 3));
}

/// Calls f.template operator()<Shape>() with the largest tiles that fit.
template <class Function>
void with_tiles(std::int64_t head_width, const Function& f) {
  if (shared_bytes<32>(head_width, 6, 2) <= kMostSharedBytes) {
    return f.template operator()<Tiles<32>>();
  }
  if (shared_bytes<8>(head_width, 6, 2) <= kMostSharedBytes) {
    return f.template operator()<Tiles<8>>();
  }
  throw std::invalid_argument("causal attention on CUDA: a head has " + std::to_string(head_width) +
                              " elements, which its tiles in shared memory have no room for; use "
                              "more heads, of at most 500 elements");
}

}  // namespace

template <class T>
void causal_attention_general(const CausalShape& shape, const CausalTensors<T>& tensors,
                              cudaStream_t stream) {
  with_tiles(shape.head_width, [&]<class Shape>() {
    const std::int64_t tiles = (shape.length + Shape::kTile - 1) / Shape::kTile;
    SCONE_LAUNCH((causal_attention_general_forward<T, Shape>),
                 (LaunchShape{tiles * shape.heads * shape.sequences, Shape::kThreads,
                              shared_bytes<Shape::kTile>(shape.head_width, 4, 1)}),
                 stream, tensors, causal_sizes(shape), static_cast<int>(tiles));
  });
}

template <class T>
void causal_attention_backward_general(const CausalShape& shape, const CausalTensors<T>& tensors,
                                       cudaStream_t stream) {
  with_tiles(shape.head_width, [&]<class Shape>() {
    const std::int64_t tiles = (shape.length + Shape::kTile - 1) / Shape::kTile;
    const std::int64_t blocks = tiles * shape.heads * shape.sequences;
    SCONE_LAUNCH(
        (causal_attention_general_keys<T, Shape>),
        (LaunchShape{blocks, Shape::kThreads, shared_bytes<Shape::kTile>(shape.head_width, 6, 2)}),
        stream, tensors, causal_sizes(shape), static_cast<int>(tiles));
    SCONE_LAUNCH(
        (causal_attention_general_queries<T, Shape>),
        (LaunchShape{blocks, Shape::kThreads, shared_bytes<Shape::kTile>(shape.head_width, 5, 2)}),
        stream, tensors, causal_sizes(shape), static_cast<int>(tiles));
  });
}

template void causal_attention_general(const CausalShape&, const CausalTensors<float>&,
                                       cudaStream_t);
template void causal_attention_general(const CausalShape&, const CausalTensors<__nv_bfloat16>&,
                                       cudaStream_t);
template void causal_attention_backward_general(const CausalShape&, const CausalTensors<float>&,
                                                cudaStream_t);
template void causal_attention_backward_general(const CausalShape&,
                                                const CausalTensors<__nv_bfloat16>&, cudaStream_t);

}  // namespace scone::cuda
