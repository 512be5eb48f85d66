#include "model/ops/cuda/elementwise.h"
#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kThreads = 256;

template <class From, class To, int kPack>
__global__ void __launch_bounds__(kThreads)
    convert_elements(const From* x, To* y, std::int64_t elements) {
  for_each_pack<kPack>(elements, [&]<int kSize>(std::int64_t at) {
    float values[kSize];
    load_floats(x + at, values);
    store_floats(y + at, values);
  });
}

template <int kPack>
__global__ void __launch_bounds__(kThreads)
    add_elements(const float* x, float* y, std::int64_t elements) {
  for_each_pack<kPack>(elements, [&]<int kSize>(std::int64_t at) {
    float values[kSize], sums[kSize];
    load_floats(x + at, values);
    load_floats(y + at, sums);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sums[i] += values[i];
    store_floats(y + at, sums);
  });
}

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    fill_elements(T* x, float value, std::int64_t elements) {
  for_each_pack<kPack>(elements, [&]<int kSize>(std::int64_t at) {
    float values[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[i] = value;
    store_floats(x + at, values);
  });
}

/// Blocks of kThreads columns (in packs), each over the rows y, y + gridDim.y ..
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    add_bias_to_rows(const T* bias, T* y, std::int64_t rows, std::int64_t width) {
  const std::int64_t column = grid_thread() * kPack;
  if (column >= width) return;
  float own[kPack];
  load_floats(bias + column, own);
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float values[kPack];
    load_floats(y + row * width + column, values);
#pragma unroll
    for (int i = 0; i < kPack; ++i) values[i] += own[i];
    store_floats(y + row * width + column, values);
  }
}

constexpr int kColumnThreads = 2;  // of a row: with packs one sector of 32 bytes
constexpr int kRowThreads = kThreads / kColumnThreads;

/// A block sums 2 packs of columns over all rows: each thread every kRowThreads-th row, then the
/// threads' sums in order.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    column_sums(const T* x, float* sums, std::int64_t rows, std::int64_t width) {
  constexpr int kColumns = kColumnThreads * kPack;
  SCONE_SHARED(float, parts, [kRowThreads][kColumns + 1]);
  const std::int64_t begin = block_index() * kColumns;
  const int part = thread_index() / kColumnThreads;
  const int own = thread_index() % kColumnThreads * kPack;
  float total[kPack] = {};
  if (begin + own < width) {
#pragma unroll 4
    for (std::int64_t row = part; row < rows; row += kRowThreads) {
      float values[kPack];
      load_floats(x + row * width + begin + own, values);
#pragma unroll
      for (int i = 0; i < kPack; ++i) total[i] += values[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) parts[part][own + i] = total[i];
  __syncthreads();
  // A warp a column at a time.
  for (int column = warp_index(); column < kColumns; column += kThreads / kWarp) {
    float sum = 0.0F;
    for (int i = lane_index(); i < kRowThreads; i += kWarp) sum += parts[i][column];
    sum = warp_sum(sum);
    if (lane_index() == 0 && begin + column < width) sums[begin + column] += sum;
  }
}

template <class From, class To>
void convert_any(const From* x, To* y, std::int64_t elements, cudaStream_t stream) {
  constexpr int kPack = Pack<__nv_bfloat16>::kSize;
  if (fits_packs(kPack, x, y)) {
    launch<convert_elements<From, To, kPack>>(
        {blocks_for_packs(elements, kPack, kThreads), kThreads}, stream, x, y, elements);
  } else {
    launch<convert_elements<From, To, 1>>({blocks_for_packs(elements, 1, kThreads), kThreads},
                                          stream, x, y, elements);
  }
}

}  // namespace

void convert(const float* x, __nv_bfloat16* y, std::int64_t elements, cudaStream_t stream) {
  convert_any(x, y, elements, stream);
}

void convert(const __nv_bfloat16* x, float* y, std::int64_t elements, cudaStream_t stream) {
  convert_any(x, y, elements, stream);
}

void add(const float* x, float* y, std::int64_t elements, cudaStream_t stream) {
  constexpr int kPack = Pack<float>::kSize;
  if (fits_packs(kPack, x, y)) {
    launch<add_elements<kPack>>({blocks_for_packs(elements, kPack, kThreads), kThreads}, stream, x,
                                y, elements);
  } else {
    launch<add_elements<1>>({blocks_for_packs(elements, 1, kThreads), kThreads}, stream, x, y,
                            elements);
  }
}

template <class T>
void fill(T* x, float value, std::int64_t elements, cudaStream_t stream) {
  constexpr int kPack = Pack<T>::kSize;
  if (fits_packs(kPack, x)) {
    launch<fill_elements<T, kPack>>({blocks_for_packs(elements, kPack, kThreads), kThreads}, stream,
                                    x, value, elements);
  } else {
    launch<fill_elements<T, 1>>({blocks_for_packs(elements, 1, kThreads), kThreads}, stream, x,
                                value, elements);
  }
}

template <class T>
void add_bias(const T* bias, T* y, std::int64_t rows, std::int64_t width, cudaStream_t stream) {
  constexpr int kPack = Pack<T>::kSize;
  constexpr std::int64_t kMostRowBlocks = 4096;
  const std::int64_t row_blocks = std::min(rows, kMostRowBlocks);
  if (fits_packs(width, bias, y)) {
    launch<add_bias_to_rows<T, kPack>>(
        {divide_up(width, kThreads * kPack), row_blocks, 1, kThreads}, stream, bias, y, rows,
        width);
  } else {
    launch<add_bias_to_rows<T, 1>>({divide_up(width, kThreads), row_blocks, 1, kThreads}, stream,
                                   bias, y, rows, width);
  }
}

template <class T>
void add_column_sums(const T* x, float* sums, std::int64_t rows, std::int64_t width,
                     cudaStream_t stream) {
  if (rows == 0) return;
  constexpr int kPack = Pack<T>::kSize;
  if (fits_packs(width, x)) {
    launch<column_sums<T, kPack>>({divide_up(width, kColumnThreads * kPack), kThreads}, stream, x,
                                  sums, rows, width);
  } else {
    launch<column_sums<T, 1>>({divide_up(width, kColumnThreads), kThreads}, stream, x, sums, rows,
                              width);
  }
}

#define INSTANTIATE(T)                                                            \
  template void fill(T*, float, std::int64_t, cudaStream_t);                      \
  template void add_bias(const T*, T*, std::int64_t, std::int64_t, cudaStream_t); \
  template void add_column_sums(const T*, float*, std::int64_t, std::int64_t, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(__nv_bfloat16);
#undef INSTANTIATE

}  // namespace scone::cuda
