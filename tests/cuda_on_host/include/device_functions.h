#pragma once

// What our kernels call: barriers, warp operations, bits, mathematics. A warp has 32 lanes.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "../block_runner.h"
#include "vector_types.h"

extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local dim3 blockDim;
extern constinit thread_local dim3 gridDim;

using SconePlace = std::source_location;

// The barrier of a block.
inline void __syncthreads(const SconePlace& where = SconePlace::current()) {
  cuda_on_host::block_barrier(where);
}

// Warp operations.
inline void __syncwarp(unsigned mask = 0xFFFFFFFFU,
                       const SconePlace& where = SconePlace::current()) {
  cuda_on_host::warp_operation(cuda_on_host::WarpOperation::sync, mask, 0, 0, where);
}

namespace cuda_on_host {
template <class T>
T shuffle(unsigned mask, T value, int source, const SconePlace& where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(WarpOperation::shuffle, mask, bits, static_cast<unsigned>(source), where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
inline int lane() { return static_cast<int>(lane_of_thread()); }
}  // namespace cuda_on_host

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const SconePlace& where = SconePlace::current()) {
  const int segment = cuda_on_host::lane() & ~(width - 1);
  return cuda_on_host::shuffle(mask, value, segment + (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  const SconePlace& where = SconePlace::current()) {
  const int lane = cuda_on_host::lane(), source = lane ^ lanes;
  // CUDA lets a lane read earlier segments, and itself instead of later ones.
  const bool later = source >= (lane & ~(width - 1)) + width;
  return cuda_on_host::shuffle(mask, value, later ? lane : source, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const SconePlace& where = SconePlace::current()) {
  return static_cast<unsigned>(cuda_on_host::warp_operation(
      cuda_on_host::WarpOperation::ballot, mask, predicate != 0 ? 1U : 0U, 0, where));
}
inline int __any_sync(unsigned mask, int predicate,
                      const SconePlace& where = SconePlace::current()) {
  return __ballot_sync(mask, predicate, where) != 0 ? 1 : 0;
}
[[noreturn]] inline void __trap(const SconePlace& where = SconePlace::current()) {
  cuda_on_host::fail("trap", where);
}

// Bits.
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

// Mathematics.
using std::max;
using std::min;
