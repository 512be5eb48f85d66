#include <cuda_bf16.h>

#include <algorithm>

#include "parallel/cuda/launch.h"
#include "parallel/cuda/sum_slices.h"

namespace scone::cuda {
namespace {

constexpr int block_threads = 256;
constexpr int pack_elements = 8;  // 16 bytes

struct alignas(16) Pack {
  __nv_bfloat16 values[pack_elements];
};

__device__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

/// T: Pack, or __nv_bfloat16 where something is not aligned to packs.
template <class T>
__global__ void __launch_bounds__(block_threads)
    sum_slices_kernel(const T* own_slice, const T* others, int own, int ranks, std::int64_t count,
                      T* out) {
  constexpr int width = static_cast<int>(sizeof(T) / sizeof(__nv_bfloat16));
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    float sums[width];
    for (int rank = 0; rank < ranks; ++rank) {
      const T source =
          rank == own ? own_slice[i] : others[(rank - (rank > own ? 1 : 0)) * count + i];
      const auto* values = reinterpret_cast<const __nv_bfloat16*>(&source);
#pragma unroll
      for (int k = 0; k < width; ++k)
        sums[k] = rank == 0 ? widen(values[k]) : sums[k] + widen(values[k]);
    }
    T result;
    auto* rounded = reinterpret_cast<__nv_bfloat16*>(&result);
#pragma unroll
    for (int k = 0; k < width; ++k) rounded[k] = __float2bfloat16_rn(sums[k]);
    out[i] = result;
  }
}

template <class T>
void start(const Bf16* own_slice, const Bf16* others, int own, int ranks, std::int64_t count,
           Bf16* out, cudaStream_t stream) {
  constexpr std::int64_t most_blocks = 1024;
  const std::int64_t blocks = std::min(most_blocks, (count + block_threads - 1) / block_threads);
  launch<sum_slices_kernel<T>>(
      {blocks, block_threads}, stream, reinterpret_cast<const T*>(own_slice),
      reinterpret_cast<const T*>(others), own, ranks, count, reinterpret_cast<T*>(out));
}

}  // namespace

void sum_slices(const Bf16* own_slice, const Bf16* others, int own, int ranks, std::int64_t count,
                Bf16* out, cudaStream_t stream) {
  if (count == 0) return;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % sizeof(Pack) == 0;
  };
  if (count % pack_elements == 0 && aligned(own_slice) && aligned(others) && aligned(out))
    start<Pack>(own_slice, others, own, ranks, count / pack_elements, out, stream);
  else
    start<__nv_bfloat16>(own_slice, others, own, ranks, count, out, stream);
}

}  // namespace scone::cuda
