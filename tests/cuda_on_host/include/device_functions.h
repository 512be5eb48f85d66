#pragma once

// What a kernel calls: barriers, warp operations, atomics, mathematics. A warp has 32 lanes.

#include <algorithm>
#include <atomic>
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
constexpr int warpSize = 32;

using SconePlace = std::source_location;

// Barriers of a block.
inline void __syncthreads(const SconePlace& where = SconePlace::current()) {
  cuda_on_host::block_barrier(false, where);
}
inline int __syncthreads_count(int predicate, const SconePlace& where = SconePlace::current()) {
  return cuda_on_host::block_barrier(predicate != 0, where);
}
inline int __syncthreads_or(int predicate, const SconePlace& where = SconePlace::current()) {
  return cuda_on_host::block_barrier(predicate != 0, where) > 0 ? 1 : 0;
}
inline int __syncthreads_and(int predicate, const SconePlace& where = SconePlace::current()) {
  return cuda_on_host::block_barrier(predicate == 0, where) == 0 ? 1 : 0;
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
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const SconePlace& where = SconePlace::current()) {
  const int lane = cuda_on_host::lane(), source = lane - static_cast<int>(delta);
  return cuda_on_host::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const SconePlace& where = SconePlace::current()) {
  const int lane = cuda_on_host::lane(), source = lane + static_cast<int>(delta);
  const bool beyond = source >= (lane & ~(width - 1)) + width;
  return cuda_on_host::shuffle(mask, value, beyond ? lane : source, where);
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
inline int __all_sync(unsigned mask, int predicate,
                      const SconePlace& where = SconePlace::current()) {
  return __ballot_sync(mask, predicate, where) == mask ? 1 : 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, const SconePlace& where = SconePlace::current()) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return static_cast<unsigned>(
      cuda_on_host::warp_operation(cuda_on_host::WarpOperation::match, mask, bits, 0, where));
}

// Threads of one block take turns, but several host threads may run kernels on the same memory.
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_add(value);
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).exchange(value);
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*address).compare_exchange_strong(expected, value);
  return expected;
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  std::atomic_ref<T> place(*address);
  T old = place.load();
  while (old < value && !place.compare_exchange_weak(old, value)) {
  }
  return old;
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  std::atomic_ref<T> place(*address);
  T old = place.load();
  while (value < old && !place.compare_exchange_weak(old, value)) {
  }
  return old;
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { __threadfence(); }
[[noreturn]] inline void __trap(const SconePlace& where = SconePlace::current()) {
  cuda_on_host::fail("trap", where);
}

// Loads and stores with hints to the caches.
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}

// Bits.
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((std::uint64_t{a} * b) >> 32U);
}

// Mathematics.
using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __exp2f(float x) { return std::exp2(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0F / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __saturatef(float x) { return std::min(std::max(x, 0.0F), 1.0F); }
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(std::sin(M_PI * static_cast<double>(x)));
  *cosine = static_cast<float>(std::cos(M_PI * static_cast<double>(x)));
}
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
