#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "model/ops/cuda/kernel_tools.h"

namespace scone::cuda {

// A head's row of elements spread over a group of lanes of a warp, for kernels that work on one
// row at a time: lane l of a group of L holds packs l, l + L, l + 2 L, ... of kPack elements (16
// bytes, or 1 element where rows are not aligned to that), as fp32.

/// Sum over the group of `lanes` lanes, a power of two, that the lane is in. All lanes of the warp
/// come here.
__device__ __forceinline__ float group_sum(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFU, value, offset);
  }
  return value;
}

/// One lane's elements of a row, zero beyond the row's end.
template <class T, int kPack, int kPacks>
struct RowPart {
  float values[kPacks][kPack];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) values[p][i] = 0.0F;
    }
  }
  /// Clears where `present` is false.
  __device__ __forceinline__ void load(const T* row, int width, int lane, int lanes,
                                       bool present = true) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * lanes + lane) * kPack;
      if (present && at < width) {
        load_floats<T, kPack>(row + at, values[p]);
      } else {
#pragma unroll
        for (int i = 0; i < kPack; ++i) values[p][i] = 0.0F;
      }
    }
  }
  __device__ __forceinline__ void store(T* row, int width, int lane, int lanes) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * lanes + lane) * kPack;
      if (at < width) store_floats<T, kPack>(row + at, values[p]);
    }
  }
  __device__ __forceinline__ void store_sums(float* row, int width, int lane, int lanes) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * lanes + lane) * kPack;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (at + i < width) row[at + i] = values[p][i];
      }
    }
  }
  __device__ __forceinline__ float partial_dot(const RowPart& other) const {
    float sum = 0.0F;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum = fmaf(values[p][i], other.values[p][i], sum);
    }
    return sum;
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) values[p][i] *= factor;
    }
  }
  __device__ __forceinline__ void add(float factor, const RowPart& other) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) values[p][i] = fmaf(factor, other.values[p][i], values[p][i]);
    }
  }
};

/// How many lanes share a row, a power of two of at most 32, and how many packs each has.
struct RowSplit {
  int pack = 1, lanes = 1, packs = 1;
};

constexpr int kMostElementsOfLane = 16;  // of vectors; single elements come with 8

/// Rows of head_width elements of T at addresses that are multiples of 16 where their bytes are.
/// Throws std::invalid_argument beyond 512 elements (256 where rows are not aligned to 16 bytes);
/// `operation` names it.
template <class T>
RowSplit split_row(std::int64_t head_width, const char* operation) {
  RowSplit split;
  if (head_width % Pack<T>::kSize == 0) split.pack = Pack<T>::kSize;
  const std::int64_t most = split.pack == 1 ? 256 : 512;
  if (head_width > most) {
    throw std::invalid_argument(std::string(operation) + " on CUDA: a head has " +
                                std::to_string(head_width) + " elements, of at most " +
                                std::to_string(most) + " for its kernels; use more heads");
  }
  const std::int64_t packs = (head_width + split.pack - 1) / split.pack;
  while (split.lanes < 32 && split.lanes < packs) split.lanes *= 2;
  while (split.packs * split.lanes < packs) split.packs *= 2;
  return split;
}

/// Calls f.template operator()<kPack, kPacks>() with the split's numbers.
template <class T, class Function>
void with_split(const RowSplit& split, const Function& f) {
  const auto with_pack = [&]<int kPack>() {
    constexpr int kMost = kPack == 1 ? 8 : kMostElementsOfLane / kPack;
    if (split.packs == 1) return f.template operator()<kPack, 1>();
    if (split.packs == 2) return f.template operator()<kPack, 2>();
    if constexpr (kMost >= 4) {
      if (split.packs == 4) return f.template operator()<kPack, 4>();
    }
    if constexpr (kMost >= 8) return f.template operator()<kPack, 8>();
  };
  if (split.pack == 1) return with_pack.template operator()<1>();
  return with_pack.template operator()<Pack<T>::kSize>();
}

}  // namespace scone::cuda
