#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "model/ops/cuda/cached_attention.h"
#include "model/ops/cuda/head_elements.h"
#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct CachedTensors {
  const T* qkv = nullptr;
  T* keys_values = nullptr;
  T* out = nullptr;
};

struct CachedSizes {
  std::int64_t past = 0, rows = 0, heads = 0, width = 0;
  int head_width = 0, lanes = 0;
  float scale = 0;
};

/// Copies k and v of the new rows to their places, kPack elements a thread.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    cached_attention_append(CachedTensors<T> tensors, CachedSizes sizes) {
  const std::int64_t packs = 2 * sizes.width / kPack, threads = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < sizes.rows * packs;
       i += threads) {
    const std::int64_t row = i / packs, at = i % packs * kPack;
    float values[kPack];  // bf16 goes through fp32 unchanged
    load_floats<T, kPack>(tensors.qkv + row * 3 * sizes.width + sizes.width + at, values);
    store_floats<T, kPack>(tensors.keys_values + (sizes.past + row) * 2 * sizes.width + at, values);
  }
}

/// A block takes one head of one row; its groups of lanes take keys in turns and join in the end.
template <class T, int kPack, int kPacks>
__global__ void __launch_bounds__(kThreads)
    cached_attention_rows(CachedTensors<T> tensors, CachedSizes sizes) {
  using Part = RowPart<T, kPack, kPacks>;
  const int width = sizes.head_width, lanes = sizes.lanes, groups = kThreads / lanes;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes, group = thread / lanes;
  float* const outputs = dynamic_shared<float>();      // [groups][width]
  float* const largest_of = outputs + groups * width;  // [groups]
  float* const sum_of = largest_of + groups;
  for (std::int64_t pair = blockIdx.x; pair < sizes.rows * sizes.heads; pair += gridDim.x) {
    const std::int64_t row = pair / sizes.heads, head = pair % sizes.heads;
    const std::int64_t keys = sizes.past + row + 1;
    Part q, k, v, o;
    q.load(tensors.qkv + row * 3 * sizes.width + head * width, width, lane, lanes);
    o.clear();
    float largest = -INFINITY, sum = 0.0F;
    const T* const all = tensors.keys_values + head * width;
#pragma unroll 2
    for (std::int64_t first = 0; first < keys; first += groups) {
      const std::int64_t key = first + group;
      const bool here = key < keys;
      const T* const from = all + (here ? key * 2 * sizes.width : 0);
      k.load(from, width, lane, lanes, here);
      v.load(from + sizes.width, width, lane, lanes, here);
      const float score = sizes.scale * group_sum(q.partial_dot(k), lanes);
      if (here) {
        const float high = fmaxf(largest, score);
        const float factor = expf(largest - high), weight = expf(score - high);
        largest = high;
        sum = sum * factor + weight;
        o.scale(factor);
        o.add(weight, v);
      }
    }
    o.store_sums(outputs + group * width, width, lane, lanes);
    if (lane == 0) {
      largest_of[group] = largest;
      sum_of[group] = sum;
    }
    __syncthreads();
    float highest = -INFINITY, total = 0.0F;
    for (int i = 0; i < groups; ++i) highest = fmaxf(highest, largest_of[i]);
    for (int i = 0; i < groups; ++i) total += sum_of[i] * expf(largest_of[i] - highest);
    for (int e = thread; e < width; e += kThreads) {
      float value = 0.0F;
      for (int i = 0; i < groups; ++i) {
        value += outputs[i * width + e] * expf(largest_of[i] - highest);
      }
      tensors.out[row * sizes.width + head * width + e] = from_float<T>(value / total);
    }
    __syncthreads();  // the next pair writes to the same memory
  }
}

}  // namespace

template <class T>
void cached_attention(const T* qkv, T* keys_values, std::int64_t past, std::int64_t heads,
                      std::int64_t head_width, T* out, std::int64_t rows, cudaStream_t stream) {
  if (rows == 0 || heads == 0 || head_width == 0) return;
  const RowSplit split = split_row<T>(head_width, "cached attention");
  const CachedTensors<T> tensors{qkv, keys_values, out};
  const CachedSizes sizes{past,
                          rows,
                          heads,
                          heads * head_width,
                          static_cast<int>(head_width),
                          split.lanes,
                          1.0F / std::sqrt(static_cast<float>(head_width))};
  const std::int64_t groups = kThreads / split.lanes;
  with_split<T>(split, [&]<int kPack, int kPacks>() {
    const std::int64_t packs = rows * 2 * sizes.width / kPack;
    SCONE_LAUNCH((cached_attention_append<T, kPack>),
                 (LaunchShape{std::min((packs + kThreads - 1) / kThreads, kMostBlocks), kThreads}),
                 stream, tensors, sizes);
    SCONE_LAUNCH((cached_attention_rows<T, kPack, kPacks>),
                 (LaunchShape{std::min(rows * heads, kMostBlocks), kThreads,
                              static_cast<std::size_t>(4 * groups * (head_width + 2))}),
                 stream, tensors, sizes);
  });
}

template void cached_attention(const float*, float*, std::int64_t, std::int64_t, std::int64_t,
                               float*, std::int64_t, cudaStream_t);
template void cached_attention(const __nv_bfloat16*, __nv_bfloat16*, std::int64_t, std::int64_t,
                               std::int64_t, __nv_bfloat16*, std::int64_t, cudaStream_t);

}  // namespace scone::cuda
