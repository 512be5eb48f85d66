#include <cuda_bf16.h>

#include <algorithm>

#include "parallel/cuda/device.h"
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
void launch(const Bf16* own_slice, const Bf16* others, int own, int ranks, std::int64_t count,
            Bf16* out, cudaStream_t stream) {
  auto own_packs = reinterpret_cast<const T*>(own_slice),
       other_packs = reinterpret_cast<const T*>(others);
  auto out_packs = reinterpret_cast<T*>(out);
  constexpr std::int64_t most_blocks = 4096;
  const dim3 grid(
      static_cast<unsigned>(std::min(most_blocks, (count + block_threads - 1) / block_threads)));
  void* arguments[] = {&own_packs, &other_packs, &own, &ranks, &count, &out_packs};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(sum_slices_kernel<T>), grid,
                         dim3(block_threads), arguments, 0, stream),
        "sum_slices");
}

}  // namespace

void sum_slices(const Bf16* own_slice, const Bf16* others, int own, int ranks, std::int64_t count,
                Bf16* out, cudaStream_t stream) {
  if (count == 0) return;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % sizeof(Pack) == 0;
  };
  if (count % pack_elements == 0 && aligned(own_slice) && aligned(others) && aligned(out))
    launch<Pack>(own_slice, others, own, ranks, count / pack_elements, out, stream);
  else
    launch<__nv_bfloat16>(own_slice, others, own, ranks, count, out, stream);
}

}  // namespace scone::cuda
