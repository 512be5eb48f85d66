#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cfloat>

#include "model/ops/cuda/cross_entropy.h"
#include "model/ops/cuda/kernel_tools.h"
#include "model/ops/cuda/tensor_core.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kMostThreads = 1024, kMostWarps = kMostThreads / 32;

template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    return exp2_approximate(x * 1.4426950408889634F);
  }
}

/// Largest number so far and the sum of exp(number - largest). Starts with the lowest float, which
/// keeps infinities apart.
struct Running {
  float largest = -FLT_MAX, sum = 0.0F;

  template <class T, int kCount>
  __device__ __forceinline__ void add(const float (&values)[kCount]) {
    float high = values[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) high = fmaxf(high, values[i]);
    if (high > largest) {
      sum *= exponential<T>(largest - high);
      largest = high;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += exponential<T>(values[i] - largest);
  }
  __device__ __forceinline__ void join(float other_largest, float other_sum) {
    const float high = fmaxf(largest, other_largest);
    sum = sum * expf(largest - high) + other_sum * expf(other_largest - high);
    largest = high;
  }
};

/// Calls f(values, index of the first) for all of row[0 .. count), 16 bytes at a time but for what
/// lies before the first address that is a multiple of 16, and after the last.
template <class T, class Function>
__device__ __forceinline__ void for_each_of_row(const T* row, std::int64_t count,
                                                const Function& f) {
  constexpr int kPack = Pack<T>::kSize;
  const auto misaligned =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) % 16 / sizeof(T));
  const std::int64_t lead = min((kPack - misaligned) % kPack, count);
  const std::int64_t packs = (count - lead) / kPack, thread = threadIdx.x, threads = blockDim.x;
  if (thread < lead) {
    float value[1];
    load_floats<T, 1>(row + thread, value);
    f(value, thread);
  }
#pragma unroll 4
  for (std::int64_t i = thread; i < packs; i += threads) {
    float values[kPack];
    load_floats<T, kPack>(row + lead + i * kPack, values);
    f(values, lead + i * kPack);
  }
  const std::int64_t last = lead + packs * kPack + thread;
  if (last < count) {
    float value[1];
    load_floats<T, 1>(row + last, value);
    f(value, last);
  }
}

/// Joins what the threads of the block have, in an order fixed by their number; every thread gets
/// the result.
__device__ __forceinline__ Running join_block(Running mine) {
  SCONE_SHARED(float, largest_of, [kMostWarps]);
  SCONE_SHARED(float, sum_of, [kMostWarps]);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float largest = __shfl_xor_sync(0xFFFFFFFFU, mine.largest, offset);
    const float sum = __shfl_xor_sync(0xFFFFFFFFU, mine.sum, offset);
    mine.join(largest, sum);
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int warps = (static_cast<int>(blockDim.x) + 31) / 32;
  if (thread % 32 == 0) {
    largest_of[thread / 32] = mine.largest;
    sum_of[thread / 32] = mine.sum;
  }
  __syncthreads();
  Running all;
  for (int i = 0; i < warps; ++i) all.join(largest_of[i], sum_of[i]);
  __syncthreads();  // the memory is free again
  return all;
}

/// row[i] = factor * exp(row[i] - largest), minus gradient_scale at `target`.
template <class T>
__device__ __forceinline__ void write_gradient(T* row, std::int64_t count, std::int64_t target,
                                               float largest, float factor, float gradient_scale) {
  for_each_of_row(row, count, [&]<int kCount>(const float(&values)[kCount], std::int64_t at) {
    float gradient[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      gradient[i] = factor * exponential<T>(values[i] - largest);
      if (at + i == target) gradient[i] -= gradient_scale;
    }
    store_floats<T, kCount>(row + at, gradient);
  });
}

template <class T>
__device__ __forceinline__ void write_zeros(T* row, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) row[i] = from_float<T>(0.0F);
}

template <class T>
__device__ __forceinline__ Running statistics_of_row(const T* row, std::int64_t count) {
  Running mine;
  for_each_of_row(row, count, [&]<int kCount>(const float(&values)[kCount], std::int64_t) {
    mine.add<T>(values);
  });
  return join_block(mine);
}

/// A block takes a row: once through it for the sum, once more for the gradient.
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    cross_entropy_rows(T* logits, const std::int32_t* targets, std::int64_t used, float* losses,
                       bool with_gradient, float gradient_scale, std::int64_t rows,
                       std::int64_t columns) {
  for (std::int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
    T* const row = logits + i * columns;
    const std::int64_t target = targets[i];
    if (target < 0) {
      if (threadIdx.x == 0) losses[i] = 0.0F;
      if (with_gradient) write_zeros(row, 0, columns);
      continue;
    }
    const float at_target = to_float(row[target]);  // before any gradient is written
    const Running all = statistics_of_row(row, used);
    if (threadIdx.x == 0) losses[i] = logf(all.sum) + (all.largest - at_target);
    if (with_gradient) {
      write_gradient(row, used, target, all.largest, gradient_scale / all.sum, gradient_scale);
      write_zeros(row, used, columns);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    cross_entropy_part_rows(const T* logits, const std::int32_t* targets, std::int64_t first_class,
                            std::int64_t used, float* statistics, std::int64_t rows,
                            std::int64_t classes) {
  for (std::int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
    const T* const row = logits + i * classes;
    const Running all = statistics_of_row(row, used);
    if (threadIdx.x == 0) {
      const std::int64_t target = targets[i], own = target - first_class;
      statistics[3 * i] = all.largest;
      statistics[3 * i + 1] = all.sum;
      statistics[3 * i + 2] = target >= 0 && own >= 0 && own < used ? to_float(row[own]) : 0.0F;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    cross_entropy_join_rows(T* logits, const std::int32_t* targets, std::int64_t first_class,
                            std::int64_t used, const float* all_statistics, std::int64_t parts,
                            float* losses, bool with_gradient, float gradient_scale,
                            std::int64_t rows, std::int64_t classes) {
  for (std::int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
    T* const row = logits + i * classes;
    const std::int64_t target = targets[i];
    if (target < 0) {
      if (threadIdx.x == 0) losses[i] = 0.0F;
      if (with_gradient) write_zeros(row, 0, classes);
      continue;
    }
    Running all;
    float at_target = 0.0F;
    for (std::int64_t part = 0; part < parts; ++part) {
      const float* const statistic = all_statistics + (part * rows + i) * 3;
      all.join(statistic[0], statistic[1]);
      at_target += statistic[2];  // 0 but at one part
    }
    if (threadIdx.x == 0) losses[i] = logf(all.sum) + (all.largest - at_target);
    if (with_gradient) {
      write_gradient(row, used, target - first_class, all.largest, gradient_scale / all.sum,
                     gradient_scale);
      write_zeros(row, used, classes);
    }
  }
}

/// Large blocks for long rows: fewer rows under way, so that they are still in the cache when they
/// are read again.
LaunchShape blocks_of_rows(std::int64_t rows, std::int64_t classes) {
  const int threads = classes >= 8192 ? 1024 : classes >= 2048 ? 256 : 64;
  return {std::min(rows, kMostBlocks), threads};
}

}  // namespace

template <class T>
void cross_entropy(T* logits, const std::int32_t* targets, std::int64_t used, float* losses,
                   bool with_gradient, float gradient_scale, std::int64_t rows,
                   std::int64_t columns, cudaStream_t stream) {
  if (rows == 0) return;
  SCONE_LAUNCH(cross_entropy_rows<T>, blocks_of_rows(rows, used), stream, logits, targets, used,
               losses, with_gradient, gradient_scale, rows, columns);
}

template <class T>
void cross_entropy_part(const T* logits, const std::int32_t* targets, std::int64_t first_class,
                        std::int64_t used, float* statistics, std::int64_t rows,
                        std::int64_t classes, cudaStream_t stream) {
  if (rows == 0) return;
  SCONE_LAUNCH(cross_entropy_part_rows<T>, blocks_of_rows(rows, classes), stream, logits, targets,
               first_class, used, statistics, rows, classes);
}

template <class T>
void cross_entropy_join(T* logits, const std::int32_t* targets, std::int64_t first_class,
                        std::int64_t used, const float* all_statistics, std::int64_t parts,
                        float* losses, bool with_gradient, float gradient_scale, std::int64_t rows,
                        std::int64_t classes, cudaStream_t stream) {
  if (rows == 0) return;
  SCONE_LAUNCH(cross_entropy_join_rows<T>, blocks_of_rows(rows, classes), stream, logits, targets,
               first_class, used, all_statistics, parts, losses, with_gradient, gradient_scale,
               rows, classes);
}

#define SCONE_INSTANTIATE(T)                                                                      \
  template void cross_entropy(T*, const std::int32_t*, std::int64_t, float*, bool, float,         \
                              std::int64_t, std::int64_t, cudaStream_t);                          \
  template void cross_entropy_part(const T*, const std::int32_t*, std::int64_t, std::int64_t,     \
                                   float*, std::int64_t, std::int64_t, cudaStream_t);             \
  template void cross_entropy_join(T*, const std::int32_t*, std::int64_t, std::int64_t,           \
                                   const float*, std::int64_t, float*, bool, float, std::int64_t, \
                                   std::int64_t, cudaStream_t);
SCONE_INSTANTIATE(float)
SCONE_INSTANTIATE(__nv_bfloat16)
#undef SCONE_INSTANTIATE

}  // namespace scone::cuda
