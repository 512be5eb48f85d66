#include <cmath>

#include "model/ops/cuda/kernel_tools.h"
#include "model/ops/cuda/optimizer.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPack = 8;                              // elements of a thread at a time
constexpr std::int64_t kTile = 4 * kThreads * kPack;  // elements of a block

// Ranges travel as a kernel parameter, of which there are 4 KiB.
struct AdamwBatch {
  struct Range {
    std::int64_t value_begin, state_begin, count;
    std::int32_t first_block, decays;
  };
  Range ranges[kMostAdamwRanges];
  int count;
};
static_assert(sizeof(AdamwBatch) < 3584);

struct AdamwFactors {
  float lr, beta1, beta2, eps, decay, gradient_scale, correction1, correction2;
  std::uint32_t seed_low, seed_high, step_low, step_high;
  bool stochastic;
};

/// Philox4x32-10 (Salmon et al., SC 2011) at counter (group, step).
__device__ __forceinline__ uint4 random_bits(std::uint64_t group, const AdamwFactors& factors) {
  uint4 counter = make_uint4(static_cast<unsigned>(group), static_cast<unsigned>(group >> 32),
                             factors.step_low, factors.step_high);
  unsigned key_low = factors.seed_low, key_high = factors.seed_high;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53U} * counter.x;
    const std::uint64_t second = std::uint64_t{0xCD9E8D57U} * counter.z;
    counter = make_uint4(
        static_cast<unsigned>(second >> 32) ^ counter.y ^ key_low, static_cast<unsigned>(second),
        static_cast<unsigned>(first >> 32) ^ counter.w ^ key_high, static_cast<unsigned>(first));
    key_low += 0x9E3779B9U;
    key_high += 0xBB67AE85U;
  }
  return counter;
}

/// Up with the probability of the part that bf16 has no bits for, else down. Infinities and NaN
/// stay.
__device__ __forceinline__ float round_at_random(float value, unsigned random) {
  const unsigned bits = __float_as_uint(value);
  if ((bits & 0x7F800000U) == 0x7F800000U) return value;
  return __uint_as_float((bits + (random & 0xFFFFU)) & 0xFFFF0000U);
}

template <int kSize>
__device__ __forceinline__ void update(const AdamwPointers& t, std::int64_t value_at,
                                       std::int64_t state_at, bool decays, const AdamwFactors& f) {
  float w[kSize], g[kSize], m[kSize], v[kSize];
  load_floats(t.values + value_at, w);
  load_floats(t.gradients + state_at, g);
  load_floats(t.m + state_at, m);
  load_floats(t.v + state_at, v);
  const float decay = decays ? f.decay : 1.0F;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float d = g[i] * f.gradient_scale;
    m[i] = f.beta1 * m[i] + (1.0F - f.beta1) * d;
    v[i] = f.beta2 * v[i] + (1.0F - f.beta2) * d * d;
    w[i] = w[i] * decay - f.lr * (m[i] * f.correction1) / (sqrtf(v[i] * f.correction2) + f.eps);
  }
  store_floats(t.values + value_at, w);
  store_floats(t.m + state_at, m);
  store_floats(t.v + state_at, v);
  if (t.working == nullptr) return;
  if (f.stochastic) {
    uint4 random = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const auto index = static_cast<std::uint64_t>(value_at + i);
      if (i == 0 || index % 4 == 0) random = random_bits(index / 4, f);
      // A pack begins at a multiple of 4.
      const unsigned place = kSize == 1 ? static_cast<unsigned>(index % 4) : i % 4U;
      const unsigned own = place == 0   ? random.x
                           : place == 1 ? random.y
                           : place == 2 ? random.z
                                        : random.w;
      w[i] = round_at_random(w[i], own);
    }
  }
  store_floats(t.working + value_at, w);
}

__global__ void __launch_bounds__(kThreads)
    adamw_ranges(AdamwPointers tensors, AdamwBatch batch, AdamwFactors factors) {
  int range = 0;
  for (int above = batch.count;
       above - range > 1;) {  // the last that begins at or before the block
    const int middle = (range + above) / 2;
    if (batch.ranges[middle].first_block <= static_cast<int>(blockIdx.x)) {
      range = middle;
    } else {
      above = middle;
    }
  }
  const AdamwBatch::Range own = batch.ranges[range];
  const std::int64_t begin = (block_index() - own.first_block) * kTile;
  const std::int64_t end = min(begin + kTile, own.count);
  const auto aligned = [](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
  };
  const bool packs = aligned(tensors.values + own.value_begin) &&
                     aligned(tensors.gradients + own.state_begin) &&
                     aligned(tensors.m + own.state_begin) && aligned(tensors.v + own.state_begin) &&
                     aligned(tensors.working + own.value_begin);
  std::int64_t rest = begin;
  if (packs) {
    rest = begin + (end - begin) / kPack * kPack;
    for (std::int64_t at = begin + thread_index() * kPack; at < rest; at += kThreads * kPack) {
      update<kPack>(tensors, own.value_begin + at, own.state_begin + at, own.decays != 0, factors);
    }
  }
  for (std::int64_t at = rest + thread_index(); at < end; at += kThreads) {
    update<1>(tensors, own.value_begin + at, own.state_begin + at, own.decays != 0, factors);
  }
}

constexpr int kMostParts = 128;
constexpr std::int64_t kSumTile = std::int64_t{1} << 15;  // elements of a block
constexpr int kJoinThreads = 1024;

struct SumBatch {
  FloatSpan parts[kMostParts];
  int first_tile[kMostParts];  // counted over the batch
  int count;
};
static_assert(sizeof(SumBatch) < 3584);

/// tiles[i] = the sum of (squares of) the elements of tile i, in double.
template <bool kSquares>
__global__ void __launch_bounds__(kThreads) sum_tiles(SumBatch batch, double* tiles) {
  int part = 0;
  for (int above = batch.count; above - part > 1;) {
    const int middle = (part + above) / 2;
    if (batch.first_tile[middle] <= static_cast<int>(blockIdx.x)) {
      part = middle;
    } else {
      above = middle;
    }
  }
  const FloatSpan own = batch.parts[part];
  const std::int64_t begin = (block_index() - batch.first_tile[part]) * kSumTile;
  const std::int64_t end = min(begin + kSumTile, own.elements);
  double sum = 0.0;
  const auto add = [&](float value) {
    const auto exact = static_cast<double>(value);
    sum += kSquares ? exact * exact : exact;
  };
  std::int64_t rest = begin;
  if (reinterpret_cast<std::uintptr_t>(own.data) % 16 == 0) {
    rest = begin + (end - begin) / 4 * 4;
#pragma unroll 4
    for (std::int64_t at = begin + thread_index() * 4; at < rest; at += kThreads * 4) {
      float values[4];
      load_floats(own.data + at, values);
#pragma unroll
      for (int i = 0; i < 4; ++i) add(values[i]);
    }
  }
  for (std::int64_t at = rest + thread_index(); at < end; at += kThreads) add(own.data[at]);
  sum = block_sum(sum);
  if (thread_index() == 0) tiles[block_index()] = sum;
}

__global__ void __launch_bounds__(kJoinThreads)
    join_tiles(const double* tiles, std::int64_t count, double* result) {
  double sum = 0.0;
  for (std::int64_t i = thread_index(); i < count; i += kJoinThreads) sum += tiles[i];
  sum = block_sum(sum);
  if (thread_index() == 0) *result = sum;
}

std::int64_t tiles_of(std::span<const FloatSpan> parts) {
  std::int64_t tiles = 0;
  for (const FloatSpan& part : parts) tiles += divide_up(part.elements, kSumTile);
  return tiles;
}

template <bool kSquares>
void sum_parts(std::span<const FloatSpan> parts, double* result, void* workspace,
               cudaStream_t stream) {
  auto* tiles = static_cast<double*>(workspace);
  SumBatch batch{};
  std::int64_t batch_tiles = 0, all_tiles = 0;
  const auto start = [&] {
    SCONE_LAUNCH(sum_tiles<kSquares>, (LaunchShape{batch_tiles, kThreads}), stream, batch,
                 tiles + all_tiles);
    all_tiles += batch_tiles;
    batch.count = 0;
    batch_tiles = 0;
  };
  for (const FloatSpan& part : parts) {
    if (part.elements == 0) continue;
    batch.parts[batch.count] = part;
    batch.first_tile[batch.count++] = static_cast<int>(batch_tiles);
    batch_tiles += divide_up(part.elements, kSumTile);
    if (batch.count == kMostParts) start();
  }
  if (batch.count > 0) start();
  SCONE_LAUNCH(join_tiles, (LaunchShape{1, kJoinThreads}), stream, tiles, all_tiles, result);
}

}  // namespace

void adamw(const AdamwPointers& tensors, std::span<const AdamwRange> ranges, const AdamwStep& step,
           cudaStream_t stream) {
  const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const auto high = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };
  const auto correction = [&](float beta) {
    return static_cast<float>(
        1.0 / (1.0 - std::pow(static_cast<double>(beta), static_cast<double>(step.step))));
  };
  const auto count = static_cast<std::uint64_t>(step.step);
  const AdamwFactors factors{step.lr,
                             step.beta1,
                             step.beta2,
                             step.eps,
                             1.0F - step.lr * step.weight_decay,
                             step.gradient_scale,
                             correction(step.beta1),
                             correction(step.beta2),
                             low(step.seed),
                             high(step.seed),
                             low(count),
                             high(count),
                             step.stochastic_rounding};
  AdamwBatch batch{};
  std::int64_t blocks = 0;
  const auto start = [&] {
    SCONE_LAUNCH(adamw_ranges, (LaunchShape{blocks, kThreads}), stream, tensors, batch, factors);
    batch.count = 0;
    blocks = 0;
  };
  for (const AdamwRange& range : ranges) {
    if (range.count == 0) continue;
    batch.ranges[batch.count++] = {range.value_begin, range.state_begin, range.count,
                                   static_cast<std::int32_t>(blocks), range.weight_decay ? 1 : 0};
    blocks += divide_up(range.count, kTile);
    if (batch.count == kMostAdamwRanges) start();
  }
  if (batch.count > 0) start();
}

std::int64_t sum_workspace_bytes(std::span<const FloatSpan> parts) {
  return divide_up(tiles_of(parts) * static_cast<std::int64_t>(sizeof(double)), 16) * 16;
}

void squared_norm(std::span<const FloatSpan> parts, double* result, void* workspace,
                  cudaStream_t stream) {
  sum_parts<true>(parts, result, workspace, stream);
}

void sum(std::span<const FloatSpan> parts, double* result, void* workspace, cudaStream_t stream) {
  sum_parts<false>(parts, result, workspace, stream);
}

}  // namespace scone::cuda
