#include <bit>
#include <cub/cub.cuh>

#include "model/ops/cuda/kernel_tools.h"
#include "model/ops/cuda/rows.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kFloatPack = Pack<float>::kSize;

/// body(i, row of the index) for each i, a warp each.
template <class Body>
__device__ __forceinline__ void for_each_row(const std::int32_t* index, std::int64_t count,
                                             const Body& body) {
  const std::int64_t first = block_index() * kWarps + warp_index();
  for (std::int64_t i = first; i < count; i += std::int64_t{gridDim.x} * kWarps) {
    body(i, std::int64_t{index[i]});
  }
}

template <int kPack>
__device__ __forceinline__ void copy_row(const float* source, float* target, std::int64_t width) {
#pragma unroll 4
  for (std::int64_t column = lane_index() * kPack; column < width; column += kWarp * kPack) {
    float values[kPack];
    load_floats(source + column, values);
    store_floats(target + column, values);
  }
}

template <int kPack>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const float* source, const std::int32_t* index, float* target,
                       std::int64_t count, std::int64_t width) {
  for_each_row(index, count, [&](std::int64_t i, std::int64_t row) {
    copy_row<kPack>(source + row * width, target + i * width, width);
  });
}

template <int kPack>
__global__ void __launch_bounds__(kThreads)
    scatter_rows_kernel(const float* source, const std::int32_t* index, float* target,
                        std::int64_t count, std::int64_t width) {
  for_each_row(index, count, [&](std::int64_t i, std::int64_t row) {
    copy_row<kPack>(source + i * width, target + row * width, width);
  });
}

__global__ void __launch_bounds__(kThreads) count_up(std::int32_t* places, std::int64_t count) {
  for (std::int64_t i = grid_thread(); i < count; i += grid_threads()) {
    places[i] = static_cast<std::int32_t>(i);
  }
}

/// sorted: the index in ascending order; places: where each stood. The warp of an index's first
/// place adds all of its rows.
template <int kPack>
__global__ void __launch_bounds__(kThreads)
    add_sorted_rows(const float* source, const std::int32_t* sorted, const std::int32_t* places,
                    float* target, std::int64_t count, std::int64_t width) {
  for_each_row(sorted, count, [&](std::int64_t i, std::int64_t row) {
    if (i > 0 && sorted[i - 1] == row) return;
    std::int64_t end = i + 1;
    while (end < count && sorted[end] == row) ++end;
    float* const total = target + row * width;
    for (std::int64_t column = lane_index() * kPack; column < width; column += kWarp * kPack) {
      float sums[kPack];
      load_floats(total + column, sums);
#pragma unroll 4
      for (std::int64_t j = i; j < end; ++j) {
        float values[kPack];
        load_floats(source + std::int64_t{places[j]} * width + column, values);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sums[k] += values[k];
      }
      store_floats(total + column, sums);
    }
  });
}

LaunchShape rows_shape(std::int64_t count) {
  return {std::min(divide_up(count, kWarps), kMostBlocks), kThreads};
}

std::int64_t padded(std::int64_t bytes) { return divide_up(bytes, 256) * 256; }
std::int64_t integer_bytes(std::int64_t count) {
  return padded(count * static_cast<std::int64_t>(sizeof(std::int32_t)));
}

/// Sorts, or with a null workspace sets its size.
void sort_pairs(void* workspace, std::size_t& bytes, const std::int32_t* keys,
                std::int32_t* sorted_keys, const std::int32_t* values, std::int32_t* sorted_values,
                std::int64_t count, int bits, cudaStream_t stream) {
  check(cub::DeviceRadixSort::SortPairs(workspace, bytes, keys, sorted_keys, values, sorted_values,
                                        count, 0, bits, stream),
        "cub::DeviceRadixSort::SortPairs");
}

constexpr int kMostBits = 31;

}  // namespace

void gather_rows(const float* source, const std::int32_t* index, float* target, std::int64_t count,
                 std::int64_t width, cudaStream_t stream) {
  if (fits_packs(width, source, target)) {
    SCONE_LAUNCH(gather_rows_kernel<kFloatPack>, rows_shape(count), stream, source, index, target,
                 count, width);
  } else {
    SCONE_LAUNCH(gather_rows_kernel<1>, rows_shape(count), stream, source, index, target, count,
                 width);
  }
}

void scatter_rows(const float* source, const std::int32_t* index, float* target, std::int64_t count,
                  std::int64_t width, cudaStream_t stream) {
  if (fits_packs(width, source, target)) {
    SCONE_LAUNCH(scatter_rows_kernel<kFloatPack>, rows_shape(count), stream, source, index, target,
                 count, width);
  } else {
    SCONE_LAUNCH(scatter_rows_kernel<1>, rows_shape(count), stream, source, index, target, count,
                 width);
  }
}

std::int64_t scatter_add_rows_workspace_bytes(std::int64_t count) {
  if (count == 0) return 0;
  std::size_t bytes = 0;
  sort_pairs(nullptr, bytes, nullptr, nullptr, nullptr, nullptr, count, kMostBits, nullptr);
  return 3 * integer_bytes(count) + padded(static_cast<std::int64_t>(bytes));
}

void scatter_add_rows(const float* source, const std::int32_t* index, float* target,
                      std::int64_t target_rows, std::int64_t count, std::int64_t width,
                      void* workspace, cudaStream_t stream) {
  if (count == 0) return;
  auto* const memory = static_cast<std::byte*>(workspace);
  const auto integers = [&](int i) {
    return reinterpret_cast<std::int32_t*>(memory + i * integer_bytes(count));
  };
  std::int32_t *const places = integers(0), *const sorted = integers(1),
                      *const sorted_places = integers(2);
  std::size_t bytes =
      static_cast<std::size_t>(scatter_add_rows_workspace_bytes(count) - 3 * integer_bytes(count));
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(
                                   std::max<std::int64_t>(target_rows, 1) - 1))));
  SCONE_LAUNCH(count_up, (LaunchShape{blocks_for_packs(count, 1, kThreads), kThreads}), stream,
               places, count);
  sort_pairs(memory + 3 * integer_bytes(count), bytes, index, sorted, places, sorted_places, count,
             bits, stream);
  if (fits_packs(width, source, target)) {
    SCONE_LAUNCH(add_sorted_rows<kFloatPack>, rows_shape(count), stream, source, sorted,
                 sorted_places, target, count, width);
  } else {
    SCONE_LAUNCH(add_sorted_rows<1>, rows_shape(count), stream, source, sorted, sorted_places,
                 target, count, width);
  }
}

}  // namespace scone::cuda
