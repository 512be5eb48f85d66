#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace scone::cuda {

// A head's row of elements spread over a group of lanes of a warp, for kernels that work on one
// row at a time: lane l of a group of L holds packs l, l + L, l + 2 L, ... of kPack elements (16
// bytes, or 1 element where rows are not aligned to that), as fp32.

__device__ __forceinline__ float element_to_float(float value) { return value; }
__device__ __forceinline__ float element_to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
template <class T>
__device__ __forceinline__ T element_of(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return __float2bfloat16(value);
  }
}

template <class T>
constexpr int kElementsOf16Bytes = 16 / static_cast<int>(sizeof(T));

template <class T, int kPack>
__device__ __forceinline__ void load_elements(float* values, const T* source) {
  if constexpr (kPack == 1) {
    values[0] = element_to_float(*source);
  } else {
    static_assert(kPack == kElementsOf16Bytes<T>);
    const uint4 bits = *reinterpret_cast<const uint4*>(source);
    T elements[kPack];
    memcpy(elements, &bits, sizeof bits);
#pragma unroll
    for (int i = 0; i < kPack; ++i) values[i] = element_to_float(elements[i]);
  }
}

template <class T, int kPack>
__device__ __forceinline__ void store_elements(const float* values, T* target) {
  if constexpr (kPack == 1) {
    *target = element_of<T>(values[0]);
  } else {
    static_assert(kPack == kElementsOf16Bytes<T>);
    T elements[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) elements[i] = element_of<T>(values[i]);
    uint4 bits;
    memcpy(&bits, elements, sizeof bits);
    *reinterpret_cast<uint4*>(target) = bits;
  }
}

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
  float values[kPacks * kPack];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kPacks * kPack; ++i) values[i] = 0.0F;
  }
  /// Clears where `present` is false.
  __device__ __forceinline__ void load(const T* row, int width, int lane, int lanes,
                                       bool present = true) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * lanes + lane) * kPack;
      if (present && at < width) {
        load_elements<T, kPack>(values + p * kPack, row + at);
      } else {
#pragma unroll
        for (int i = 0; i < kPack; ++i) values[p * kPack + i] = 0.0F;
      }
    }
  }
  __device__ __forceinline__ void store(T* row, int width, int lane, int lanes) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * lanes + lane) * kPack;
      if (at < width) store_elements<T, kPack>(values + p * kPack, row + at);
    }
  }
  __device__ __forceinline__ void store_floats(float* row, int width, int lane, int lanes) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * lanes + lane) * kPack;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (at + i < width) row[at + i] = values[p * kPack + i];
      }
    }
  }
  __device__ __forceinline__ float partial_dot(const RowPart& other) const {
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < kPacks * kPack; ++i) sum = fmaf(values[i], other.values[i], sum);
    return sum;
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < kPacks * kPack; ++i) values[i] *= factor;
  }
  __device__ __forceinline__ void add(float factor, const RowPart& other) {
#pragma unroll
    for (int i = 0; i < kPacks * kPack; ++i) values[i] = fmaf(factor, other.values[i], values[i]);
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
  if (head_width % kElementsOf16Bytes<T> == 0) split.pack = kElementsOf16Bytes<T>;
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
  return with_pack.template operator()<kElementsOf16Bytes<T>>();
}

}  // namespace scone::cuda
