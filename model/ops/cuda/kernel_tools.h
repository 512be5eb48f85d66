#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

// What all kernels use. Sources are also compiled for the host (tests/cuda_on_host), so shared
// memory is declared by SCONE_SHARED and dynamic_shared alone.

#ifdef SCONE_CUDA_ON_HOST
/// SCONE_SHARED(float, tile, [16][17]): static shared memory, not initialised.
#define SCONE_SHARED(type, name, ...)                                                      \
  std::type_identity_t<type __VA_ARGS__>& name =                                           \
      *static_cast<std::type_identity_t<type __VA_ARGS__>*>(::cuda_on_host::static_shared( \
          [] {                                                                             \
            static const char tag = 0;                                                     \
            return static_cast<const void*>(&tag);                                         \
          }(),                                                                             \
          sizeof(type __VA_ARGS__)))
#else
#define SCONE_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#endif

namespace scone::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFU;
constexpr std::int64_t kMostBlocks = 1 << 20;  // kernels with a grid-stride loop start no more

/// The dynamic shared memory of the block, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef SCONE_CUDA_ON_HOST
  return static_cast<T*>(::cuda_on_host::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char scone_dynamic_shared[];
  return reinterpret_cast<T*>(scone_dynamic_shared);
#endif
}

// Types.

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

/// To the nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// 16 bytes of T, loaded and stored by one instruction. Addresses are multiples of 16.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  T items[kSize];

  static __device__ __forceinline__ Pack load(const T* address) {
    const uint4 bits = *reinterpret_cast<const uint4*>(address);
    Pack pack;
    memcpy(static_cast<void*>(&pack), &bits, sizeof(bits));
    return pack;
  }
  __device__ __forceinline__ void store(T* address) const {
    uint4 bits;
    memcpy(&bits, this, sizeof(bits));
    *reinterpret_cast<uint4*>(address) = bits;
  }
};

/// kSize elements as fp32, loaded and stored as whole 16-byte packs, or one by one (kSize 1).
/// Of fp32 tensors beside bf16 ones, kSize = 8 takes two packs.
template <class T, int kSize>
__device__ __forceinline__ void load_floats(const T* address, float (&values)[kSize]) {
  if constexpr (kSize == 1) {
    values[0] = to_float(*address);
  } else {
    static_assert(kSize % Pack<T>::kSize == 0);
#pragma unroll
    for (int begin = 0; begin < kSize; begin += Pack<T>::kSize) {
      const Pack<T> pack = Pack<T>::load(address + begin);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) values[begin + i] = to_float(pack.items[i]);
    }
  }
}
template <class T, int kSize>
__device__ __forceinline__ void store_floats(T* address, const float (&values)[kSize]) {
  if constexpr (kSize == 1) {
    *address = from_float<T>(values[0]);
  } else {
    static_assert(kSize % Pack<T>::kSize == 0);
#pragma unroll
    for (int begin = 0; begin < kSize; begin += Pack<T>::kSize) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) pack.items[i] = from_float<T>(values[begin + i]);
      pack.store(address + begin);
    }
  }
}

/// Whether rows of `width` elements may be loaded by packs from all the addresses.
template <class... T>
bool fits_packs(std::int64_t width, const T*... addresses) {
  const auto fits = [width](const auto* address) {
    const auto bytes = static_cast<std::int64_t>(sizeof(*address));
    return width * bytes % 16 == 0 && reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
  };
  return (fits(addresses) && ...);
}

// Places and counts.

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int thread_count() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ std::int64_t block_index() { return blockIdx.x; }
__device__ __forceinline__ std::int64_t grid_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ std::int64_t grid_threads() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

/// body.operator()<kPack>(at) for each whole pack of `elements`, and operator()<1> for what
/// remains, spread over the grid.
template <int kPack, class Body>
__device__ __forceinline__ void for_each_pack(std::int64_t elements, const Body& body) {
  const std::int64_t packs = elements / kPack;
  for (std::int64_t i = grid_thread(); i < packs; i += grid_threads()) {
    body.template operator()<kPack>(i * kPack);
  }
  if constexpr (kPack > 1) {
    const std::int64_t at = packs * kPack + grid_thread();
    if (at < elements) body.template operator()<1>(at);
  }
}
/// Blocks of `threads` >= kPack for it.
inline std::int64_t blocks_for_packs(std::int64_t elements, int pack, int threads) {
  return std::min(divide_up(divide_up(elements, pack), threads), kMostBlocks);
}

// Sums and maxima, the same in every thread. All threads take part. Their order is fixed.

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

/// Over a block of whole warps, in one dimension.
template <class T>
__device__ __forceinline__ T block_sum(T value) {
  SCONE_SHARED(T, parts, [kWarp]);
  value = warp_sum(value);
  __syncthreads();  // an earlier call's parts are read
  if (lane_index() == 0) parts[warp_index()] = value;
  __syncthreads();
  return warp_sum(lane_index() < thread_count() / kWarp ? parts[lane_index()] : T{0});
}

}  // namespace scone::cuda
