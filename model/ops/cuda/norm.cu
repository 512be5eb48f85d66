#include "model/ops/cuda/elementwise.h"
#include "model/ops/cuda/kernel_tools.h"
#include "model/ops/cuda/norm.h"
#include "model/ops/ops.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kRowsOfBlock = 4;         // where a warp takes a row
constexpr int kMostGroupThreads = 512;  // threads that share a row in the backward pass

/// Sum over the warps that share a row: one warp, or the whole block.
template <bool kWholeBlock>
__device__ __forceinline__ float row_sum(float value) {
  if constexpr (kWholeBlock) {
    return block_sum(value);
  } else {
    return warp_sum(value);
  }
}

/// A row is held in registers, kPacks packs of kPack elements a thread, by a warp or by a block.
template <class T, int kPack, int kPacks, bool kWholeBlock>
__global__ void __launch_bounds__(kBlockThreads)
    norm_rows(bool centered, const T* x, const T* gain, const T* bias, T* y, float* statistics,
              std::int64_t rows, int width) {
  constexpr int kGroup = kWholeBlock ? kBlockThreads : kWarp;
  const int place = kWholeBlock ? thread_index() : lane_index();
  const std::int64_t first =
      kWholeBlock ? block_index() : block_index() * kRowsOfBlock + warp_index();
  const std::int64_t step = std::int64_t{gridDim.x} * (kWholeBlock ? 1 : kRowsOfBlock);
  const float scale = 1.0F / static_cast<float>(width);
  for (std::int64_t row = first; row < rows; row += step) {
    float values[kPacks][kPack];
    float sum = 0.0F;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * kGroup + place) * kPack;
      if (column < width) load_floats(x + row * width + column, values[p]);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (column >= width) values[p][i] = 0.0F;
        sum += values[p][i];
      }
    }
    const float mean = centered ? row_sum<kWholeBlock>(sum) * scale : 0.0F;
    float squares = 0.0F;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if ((p * kGroup + place) * kPack < width) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          squares = fmaf(values[p][i] - mean, values[p][i] - mean, squares);
        }
      }
    }
    const float r = 1.0F / sqrtf(row_sum<kWholeBlock>(squares) * scale + kNormEpsilon);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * kGroup + place) * kPack;
      if (column < width) {
        float gains[kPack], biases[kPack] = {};
        load_floats(gain + column, gains);
        if (bias != nullptr) load_floats(bias + column, biases);
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          values[p][i] = fmaf((values[p][i] - mean) * r, gains[i], biases[i]);
        }
        store_floats(y + row * width + column, values[p]);
      }
    }
    if (place == 0) {
      statistics[2 * row] = mean;
      statistics[2 * row + 1] = r;
    }
  }
}

/// Any width: a block reads its row three times, element by element.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    norm_rows_of_any_width(bool centered, const T* x, const T* gain, const T* bias, T* y,
                           float* statistics, std::int64_t rows, std::int64_t width) {
  const float scale = 1.0F / static_cast<float>(width);
  for (std::int64_t row = block_index(); row < rows; row += gridDim.x) {
    const T* const own = x + row * width;
    float sum = 0.0F;
    for (std::int64_t i = thread_index(); i < width; i += kBlockThreads) sum += to_float(own[i]);
    const float mean = centered ? block_sum(sum) * scale : 0.0F;
    float squares = 0.0F;
    for (std::int64_t i = thread_index(); i < width; i += kBlockThreads) {
      const float distance = to_float(own[i]) - mean;
      squares = fmaf(distance, distance, squares);
    }
    const float r = 1.0F / sqrtf(block_sum(squares) * scale + kNormEpsilon);
    for (std::int64_t i = thread_index(); i < width; i += kBlockThreads) {
      const float shift = bias == nullptr ? 0.0F : to_float(bias[i]);
      y[row * width + i] =
          from_float<T>(fmaf((to_float(own[i]) - mean) * r, to_float(gain[i]), shift));
    }
    if (thread_index() == 0) {
      statistics[2 * row] = mean;
      statistics[2 * row + 1] = r;
    }
  }
}

template <class T>
struct NormGradient {
  const T* d_y;
  const T* x;
  const T* gain;
  const float* statistics;
  T* d_x;
  float* gain_parts;  // [blocks, width]
  float* bias_parts;  // [blocks, width], or null
  std::int64_t rows;
  int width;
  bool centered, accumulate;
};

/// Block (group, members): `members` rows at a time, each held by `group` threads, kPacks packs a
/// thread, who also keep the sums of their columns' gradients of gain and bias. At the end the
/// members' sums are added in order. Dynamic shared memory: 2 width floats where there is more than
/// one member.
template <class T, int kPacks>
__global__ void __launch_bounds__(kMostGroupThreads) norm_gradient_rows(NormGradient<T> args) {
  constexpr int kPack = Pack<T>::kSize;
  constexpr int kMostWarps = kMostGroupThreads / kWarp;
  SCONE_SHARED(float2, parts, [2][kMostWarps]);
  const int group = static_cast<int>(blockDim.x), members = static_cast<int>(blockDim.y);
  const int place = thread_index(), member = static_cast<int>(threadIdx.y);
  const int warps = group / kWarp, warp = place / kWarp;
  const int width = args.width;
  const float scale = 1.0F / static_cast<float>(width);
  float gain_sums[kPacks][kPack] = {}, bias_sums[kPacks][kPack] = {};
  int parity = 0;
  for (std::int64_t begin = block_index() * members; begin < args.rows;
       begin += std::int64_t{gridDim.x} * members) {
    const std::int64_t row = begin + member;
    const bool present = row < args.rows;
    const float mean = present ? args.statistics[2 * row] : 0.0F;
    const float r = present ? args.statistics[2 * row + 1] : 0.0F;
    // Kept as they are in memory, which for bf16 takes half the registers.
    Pack<T> x[kPacks], d_y[kPacks];
    float sum = 0.0F, dot = 0.0F;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * group + place) * kPack;
      if (present && column < width) {
        float gains[kPack];
        x[p] = Pack<T>::load(args.x + row * width + column);
        d_y[p] = Pack<T>::load(args.d_y + row * width + column);
        load_floats(args.gain + column, gains);
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          const float normal = (to_float(x[p].items[i]) - mean) * r, d = to_float(d_y[p].items[i]);
          gain_sums[p][i] = fmaf(d, normal, gain_sums[p][i]);
          bias_sums[p][i] += d;
          sum = fmaf(d, gains[i], sum);
          dot = fmaf(d * gains[i], normal, dot);
        }
      }
    }
    // Two boards in turn, so that one barrier a row is enough.
    sum = warp_sum(sum);
    dot = warp_sum(dot);
    float2* const board = parts[parity];
    if (place % kWarp == 0) board[member * warps + warp] = make_float2(sum, dot);
    __syncthreads();
    parity ^= 1;
    sum = dot = 0.0F;
    for (int i = 0; i < warps; ++i) {
      sum += board[member * warps + i].x;
      dot += board[member * warps + i].y;
    }
    sum = args.centered ? sum * scale : 0.0F;
    dot *= scale;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int column = (p * group + place) * kPack;
      if (present && column < width) {
        T* const target = args.d_x + row * width + column;
        float gains[kPack], out[kPack] = {};
        load_floats(args.gain + column, gains);
        if (args.accumulate) load_floats(target, out);
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          const float normal = (to_float(x[p].items[i]) - mean) * r;
          out[i] = fmaf(r, to_float(d_y[p].items[i]) * gains[i] - sum - normal * dot, out[i]);
        }
        store_floats(target, out);
      }
    }
  }
  if (members > 1) {
    auto* const total = dynamic_shared<float>();
    for (int turn = 0; turn < members; ++turn) {
      if (turn == member) {
#pragma unroll
        for (int p = 0; p < kPacks; ++p) {
          const int column = (p * group + place) * kPack;
          if (column < width) {
#pragma unroll
            for (int i = 0; i < kPack; ++i) {
              float* const gain_total = total + column + i;
              float* const bias_total = gain_total + width;
              if (turn > 0) {
                gain_sums[p][i] += *gain_total;
                bias_sums[p][i] += *bias_total;
              }
              *gain_total = gain_sums[p][i];
              *bias_total = bias_sums[p][i];
            }
          }
        }
      }
      __syncthreads();
    }
  }
  if (member != members - 1) return;  // the last one has the sums of all
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = (p * group + place) * kPack;
    if (column < width) {
      const std::int64_t at = block_index() * width + column;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        args.gain_parts[at + i] = gain_sums[p][i];
        if (args.bias_parts != nullptr) args.bias_parts[at + i] = bias_sums[p][i];
      }
    }
  }
}

/// Any width: a block takes the rows [chunk b, chunk (b + 1)), element by element; then its
/// columns.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    norm_gradient_of_any_width(NormGradient<T> args, std::int64_t chunk) {
  const std::int64_t begin = block_index() * chunk, width = args.width;
  const std::int64_t end = begin + chunk < args.rows ? begin + chunk : args.rows;
  const float scale = 1.0F / static_cast<float>(width);
  for (std::int64_t row = begin; row < end; ++row) {
    const T* const d_y = args.d_y + row * width;
    const T* const x = args.x + row * width;
    T* const d_x = args.d_x + row * width;
    const float mean = args.statistics[2 * row], r = args.statistics[2 * row + 1];
    float sum = 0.0F, dot = 0.0F;
    for (std::int64_t i = thread_index(); i < width; i += kBlockThreads) {
      const float d = to_float(d_y[i]) * to_float(args.gain[i]);
      sum += d;
      dot = fmaf(d, (to_float(x[i]) - mean) * r, dot);
    }
    sum = args.centered ? block_sum(sum) * scale : 0.0F;
    dot = block_sum(dot) * scale;
    for (std::int64_t i = thread_index(); i < width; i += kBlockThreads) {
      const float d = to_float(d_y[i]) * to_float(args.gain[i]);
      const float normal = (to_float(x[i]) - mean) * r;
      const float before = args.accumulate ? to_float(d_x[i]) : 0.0F;
      d_x[i] = from_float<T>(fmaf(r, d - sum - normal * dot, before));
    }
  }
  for (std::int64_t i = thread_index(); i < width; i += kBlockThreads) {
    float gain_sum = 0.0F, bias_sum = 0.0F;
    for (std::int64_t row = begin; row < end; ++row) {
      const float d = to_float(args.d_y[row * width + i]);
      const float normal = (to_float(args.x[row * width + i]) - args.statistics[2 * row]) *
                           args.statistics[2 * row + 1];
      gain_sum = fmaf(d, normal, gain_sum);
      bias_sum += d;
    }
    args.gain_parts[block_index() * width + i] = gain_sum;
    if (args.bias_parts != nullptr) args.bias_parts[block_index() * width + i] = bias_sum;
  }
}

/// Blocks whose sums of columns are kept apart: from the number of rows alone.
std::int64_t gradient_blocks(std::int64_t rows) {
  constexpr std::int64_t kRowsOfPart = 8, kMostParts = 512;
  return std::min(divide_up(rows, kRowsOfPart), kMostParts);
}

template <class T, int kPacks>
void start_gradient(const NormGradient<T>& args, int group, cudaStream_t stream) {
  constexpr int kWantedThreads = 384;
  const int members = std::max(1, kWantedThreads / group);
  const std::size_t shared =
      members > 1 ? static_cast<std::size_t>(args.width) * 2 * sizeof(float) : 0;
  launch<norm_gradient_rows<T, kPacks>>(
      {gradient_blocks(args.rows), 1, 1,
       dim3(static_cast<unsigned>(group), static_cast<unsigned>(members)), shared},
      stream, args);
}

int whole_warps(std::int64_t threads) {
  return static_cast<int>(divide_up(threads, kWarp)) * kWarp;
}

}  // namespace

template <class T>
void norm(NormKind kind, const T* x, const T* gain, const T* bias, T* y, float* statistics,
          std::int64_t rows, std::int64_t width, cudaStream_t stream) {
  constexpr int kPack = Pack<T>::kSize;
  const bool centered = kind == NormKind::layernorm;
  const std::int64_t packs = width / kPack;
  const auto start = [&]<int kPacks, bool kWholeBlock>() {
    const std::int64_t blocks = kWholeBlock ? rows : divide_up(rows, kRowsOfBlock);
    const int threads = kWholeBlock ? kBlockThreads : kRowsOfBlock * kWarp;
    launch<norm_rows<T, kPack, kPacks, kWholeBlock>>({std::min(blocks, kMostBlocks), threads},
                                                     stream, centered, x, gain, bias, y, statistics,
                                                     rows, static_cast<int>(width));
  };
  const bool packed =
      bias == nullptr ? fits_packs(width, x, gain, y) : fits_packs(width, x, gain, bias, y);
  if (!packed || packs > 8 * kBlockThreads) {
    launch<norm_rows_of_any_width<T>>({std::min(rows, kMostBlocks), kBlockThreads}, stream,
                                      centered, x, gain, bias, y, statistics, rows, width);
  } else if (packs <= kWarp) {
    start.template operator()<1, false>();
  } else if (packs <= 2 * kWarp) {
    start.template operator()<2, false>();
  } else if (packs <= 3 * kWarp) {
    start.template operator()<3, false>();
  } else if (packs <= 4 * kWarp) {
    start.template operator()<4, false>();
  } else if (packs <= 8 * kWarp) {
    start.template operator()<8, false>();
  } else if (packs <= 2 * kBlockThreads) {
    start.template operator()<2, true>();
  } else {
    start.template operator()<8, true>();
  }
}

std::int64_t norm_backward_workspace_bytes(std::int64_t rows, std::int64_t width) {
  const auto bytes = static_cast<std::int64_t>(sizeof(float));
  return divide_up(gradient_blocks(rows) * 2 * width * bytes, 16) * 16;
}

template <class T>
void norm_backward(NormKind kind, const T* d_y, const T* x, const T* gain, const float* statistics,
                   T* d_x, bool accumulate, float* d_gain, float* d_bias, std::int64_t rows,
                   std::int64_t width, void* workspace, cudaStream_t stream) {
  if (rows == 0) return;
  constexpr int kPack = Pack<T>::kSize;
  constexpr int kMostPacks = sizeof(T) == 4 ? 4 : 2;  // of a thread: as registers allow
  const std::int64_t blocks = gradient_blocks(rows), packs = width / kPack;
  auto* const gain_parts = static_cast<float*>(workspace);
  float* const bias_parts = d_bias == nullptr ? nullptr : gain_parts + blocks * width;
  const NormGradient<T> args{d_y,
                             x,
                             gain,
                             statistics,
                             d_x,
                             gain_parts,
                             bias_parts,
                             rows,
                             static_cast<int>(width),
                             kind == NormKind::layernorm,
                             accumulate};
  if (!fits_packs(width, d_y, x, gain, d_x) || packs > kMostPacks * kMostGroupThreads) {
    const std::int64_t chunk = divide_up(rows, blocks);
    launch<norm_gradient_of_any_width<T>>({divide_up(rows, chunk), kBlockThreads}, stream, args,
                                          chunk);
    add_column_sums(gain_parts, d_gain, divide_up(rows, chunk), width, stream);
    if (d_bias != nullptr) {
      add_column_sums(bias_parts, d_bias, divide_up(rows, chunk), width, stream);
    }
    return;
  }
  if (packs <= kBlockThreads) {
    start_gradient<T, 1>(args, whole_warps(packs), stream);
  } else if (packs <= 2 * kMostGroupThreads) {
    start_gradient<T, 2>(args, whole_warps(divide_up(packs, 2)), stream);
  } else {
    start_gradient<T, kMostPacks>(args, whole_warps(divide_up(packs, kMostPacks)), stream);
  }
  add_column_sums(gain_parts, d_gain, blocks, width, stream);
  if (d_bias != nullptr) add_column_sums(bias_parts, d_bias, blocks, width, stream);
}

#define INSTANTIATE(T)                                                                        \
  template void norm(NormKind, const T*, const T*, const T*, T*, float*, std::int64_t,        \
                     std::int64_t, cudaStream_t);                                             \
  template void norm_backward(NormKind, const T*, const T*, const T*, const float*, T*, bool, \
                              float*, float*, std::int64_t, std::int64_t, void*, cudaStream_t)
INSTANTIATE(float);
INSTANTIATE(__nv_bfloat16);
#undef INSTANTIATE

}  // namespace scone::cuda
