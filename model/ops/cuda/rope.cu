#include "model/ops/cuda/kernel_tools.h"
#include "model/ops/cuda/rope.h"
#include "model/ops/ops.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kThreads = 256;

/// A block rotates one row at a time: cosines and sines once, then all heads of q and k.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    rope_rows(T* qkv, const std::int32_t* positions, int heads, int half, bool inverse,
              std::int64_t rows) {
  float* const cosine = dynamic_shared<float>();
  float* const sine = cosine + half;
  const std::int64_t width = std::int64_t{2} * heads * half;
  const int packs = half / kPack;  // of one half of a head
  for (std::int64_t row = block_index(); row < rows; row += gridDim.x) {
    for (int i = thread_index(); i < half; i += kThreads) {
      // position * base^(-i / half), in double: an angle of many turns leaves fp32 few digits.
      const double frequency = exp2(-log2(static_cast<double>(kRopeBase)) * i / half);
      double s = 0, c = 0;
      sincos(positions[row] * frequency, &s, &c);
      cosine[i] = static_cast<float>(c);
      sine[i] = static_cast<float>(inverse ? -s : s);
    }
    __syncthreads();
    T* const values = qkv + row * 3 * width;
    for (int place = thread_index(); place < 2 * heads * packs; place += kThreads) {
      const int begin = place % packs * kPack;
      T* const low = values + std::int64_t{place / packs} * 2 * half + begin;
      float a[kPack], b[kPack];
      load_floats(low, a);
      load_floats(low + half, b);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float c = cosine[begin + i], s = sine[begin + i], old = a[i];
        a[i] = old * c - b[i] * s;
        b[i] = b[i] * c + old * s;
      }
      store_floats(low, a);
      store_floats(low + half, b);
    }
    __syncthreads();
  }
}

}  // namespace

template <class T>
void rope(T* qkv, const std::int32_t* positions, std::int64_t heads, std::int64_t head_width,
          bool inverse, std::int64_t rows, cudaStream_t stream) {
  constexpr int kPack = Pack<T>::kSize;
  const auto half = static_cast<int>(head_width / 2);
  const LaunchShape shape(std::min(rows, kMostBlocks), kThreads,
                          static_cast<std::size_t>(half) * 2 * sizeof(float));
  if (fits_packs(half, qkv)) {
    launch<rope_rows<T, kPack>>(shape, stream, qkv, positions, static_cast<int>(heads), half,
                                inverse, rows);
  } else {
    launch<rope_rows<T, 1>>(shape, stream, qkv, positions, static_cast<int>(heads), half, inverse,
                            rows);
  }
}

template void rope(float*, const std::int32_t*, std::int64_t, std::int64_t, bool, std::int64_t,
                   cudaStream_t);
template void rope(__nv_bfloat16*, const std::int32_t*, std::int64_t, std::int64_t, bool,
                   std::int64_t, cudaStream_t);

}  // namespace scone::cuda
