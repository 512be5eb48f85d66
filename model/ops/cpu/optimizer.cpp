#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "model/ops/cpu/element.h"
#include "model/ops/cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/optimizer.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

constexpr std::int64_t kBlock = 4096;  // elements that a thread takes at a time

/// Sum over blocks of term(first, end), each block on one thread, blocks added in order.
template <class Term>
double blockwise_sum(std::int64_t elements, const Term& term) {
  const std::int64_t blocks = (elements + kBlock - 1) / kBlock;
  static thread_local Scratch scratch;
  double* const parts = scratch.get<double>(blocks);
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < blocks; ++block) {
    parts[block] = term(block * kBlock, std::min(elements, (block + 1) * kBlock));
  }
  double sum = 0.0;
  for (std::int64_t block = 0; block < blocks; ++block) sum += parts[block];
  return sum;
}

/// Sum of term(value), by lanes that do not depend on the instruction set.
template <class Term>
double sum_of(const float* values, std::int64_t begin, std::int64_t end, Term term) {
  constexpr std::int64_t kLanes = 32;
  double lanes[kLanes] = {};
  std::int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
#pragma omp simd
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(values[i + lane]);
  }
  for (; i < end; ++i) lanes[i % kLanes] += term(values[i]);
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

struct SumOfSquares {
  const float* values;
  double operator()(std::int64_t begin, std::int64_t end) const {
    return sum_of(values, begin, end, [](float value) HWY_ATTR {
      return static_cast<double>(value) * static_cast<double>(value);
    });
  }
};

struct Sum {
  const float* values;
  double operator()(std::int64_t begin, std::int64_t end) const {
    return sum_of(values, begin, end,
                  [](float value) HWY_ATTR { return static_cast<double>(value); });
  }
};

struct AdamwFactors {
  float lr, beta1, beta2, eps, decay, gradient_scale, correction1, correction2;
};

struct AdamwPointers {
  float* values;
  const float* gradients;
  float *m, *v;
};

void update(const AdamwPointers& t, const AdamwFactors& f, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const float d = t.gradients[i] * f.gradient_scale;
    t.m[i] = f.beta1 * t.m[i] + (1.0F - f.beta1) * d;
    t.v[i] = f.beta2 * t.v[i] + (1.0F - f.beta2) * d * d;
    const float divisor = std::sqrt(t.v[i] * f.correction2) + f.eps;
    t.values[i] = t.values[i] * f.decay - f.lr * (t.m[i] * f.correction1) / divisor;
  }
}

void round_to_nearest(const float* values, Bf16* working, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) working[i] = to_bf16(values[i]);
}

/// Philox4x32-10 (Salmon et al., SC 2011) at kGroups counters (group, step) next to each other:
/// word w of group i is words[w][i].
constexpr int kGroups = 16;
struct RandomWords {
  std::uint32_t words[4][kGroups];
  RandomWords(std::uint64_t first_group, std::uint64_t step, std::uint64_t seed) {
    for (int i = 0; i < kGroups; ++i) {
      const std::uint64_t group = first_group + static_cast<std::uint64_t>(i);
      words[0][i] = static_cast<std::uint32_t>(group);
      words[1][i] = static_cast<std::uint32_t>(group >> 32);
      words[2][i] = static_cast<std::uint32_t>(step);
      words[3][i] = static_cast<std::uint32_t>(step >> 32);
    }
    auto key_low = static_cast<std::uint32_t>(seed);
    auto key_high = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
#pragma omp simd
      for (int i = 0; i < kGroups; ++i) {
        const std::uint64_t first = std::uint64_t{0xD2511F53U} * words[0][i];
        const std::uint64_t second = std::uint64_t{0xCD9E8D57U} * words[2][i];
        words[0][i] = static_cast<std::uint32_t>(second >> 32) ^ words[1][i] ^ key_low;
        words[1][i] = static_cast<std::uint32_t>(second);
        words[2][i] = static_cast<std::uint32_t>(first >> 32) ^ words[3][i] ^ key_high;
        words[3][i] = static_cast<std::uint32_t>(first);
      }
      key_low += 0x9E3779B9U;
      key_high += 0xBB67AE85U;
    }
  }
};

/// Up with the probability of the part that bf16 has no bits for, else down: by 16 bits for each
/// value, those of its index (`begin` that of the first). Infinities and NaN stay.
void round_at_random(const float* values, Bf16* working, std::int64_t begin, std::int64_t count,
                     const AdamwStep& step) {
  constexpr std::int64_t kValues = 4 * kGroups;
  const std::int64_t end = begin + count;
  for (std::int64_t at = begin / kValues * kValues; at < end; at += kValues) {
    const RandomWords random(static_cast<std::uint64_t>(at) / 4,
                             static_cast<std::uint64_t>(step.step), step.seed);
    for (std::int64_t index = std::max(at, begin); index < std::min(at + kValues, end); ++index) {
      const auto bits = std::bit_cast<std::uint32_t>(values[index - begin]);
      const std::int64_t place = index - at;
      const std::uint32_t own = random.words[place % 4][place / 4] & 0xFFFFU;
      working[index - begin] = (bits & 0x7F800000U) == 0x7F800000U
                                   ? to_bf16(values[index - begin])
                                   : Bf16{static_cast<std::uint16_t>((bits + own) >> 16)};
    }
  }
}

template <class From, class To>
void convert(const From* from, To* to, std::int64_t count) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < count; ++i) to[i] = from_float<To>(to_float(from[i]));
}

}  // namespace

/// This instruction set's backend.
Backend& own_backend() {
  static CpuBackend backend;
  return backend;
}

void CpuBackend::upload(std::span<const std::int32_t> source, const Tensor& target) {
  if (!source.empty()) std::memcpy(target.data<std::int32_t>(), source.data(), source.size_bytes());
}

void CpuBackend::upload(std::span<const float> source, const Tensor& target) {
  if (source.empty()) return;
  if (is_bf16(target))
    convert(source.data(), target.data<Bf16>(), std::ssize(source));
  else
    std::memcpy(target.data<float>(), source.data(), source.size_bytes());
}

void CpuBackend::download(const Tensor& source, std::span<float> target) {
  if (target.empty()) return;
  if (is_bf16(source))
    convert(source.data<Bf16>(), target.data(), std::ssize(target));
  else
    std::memcpy(target.data(), source.data<float>(), target.size_bytes());
}

void CpuBackend::copy(const Tensor& source, const Tensor& target) {
  if (source.empty()) return;
  if (source.dtype() == target.dtype())
    std::memcpy(target.raw(), source.raw(), source.bytes());
  else if (is_bf16(target))
    convert(source.data<float>(), target.data<Bf16>(), source.elements());
  else
    convert(source.data<Bf16>(), target.data<float>(), source.elements());
}

void CpuBackend::zero(const Tensor& target) {
  constexpr std::int64_t kBytes = 1 << 20;  // cleared by one thread at a time
  auto* first = static_cast<std::byte*>(target.raw());
  const auto bytes = static_cast<std::int64_t>(target.bytes());
#pragma omp parallel for schedule(static) if (bytes > kBytes)
  for (std::int64_t begin = 0; begin < bytes; begin += kBytes)
    std::memset(first + begin, 0, static_cast<std::size_t>(std::min(kBytes, bytes - begin)));
}

void CpuBackend::adamw(const AdamwTensors& tensors, std::span<const AdamwRange> ranges,
                       const AdamwStep& step) {
  const auto correction = [&step](float beta) {
    return static_cast<float>(
        1.0 / (1.0 - std::pow(static_cast<double>(beta), static_cast<double>(step.step))));
  };
  AdamwFactors factors{.lr = step.lr,
                       .beta1 = step.beta1,
                       .beta2 = step.beta2,
                       .eps = step.eps,
                       .decay = 1.0F,
                       .gradient_scale = step.gradient_scale,
                       .correction1 = correction(step.beta1),
                       .correction2 = correction(step.beta2)};
  for (const AdamwRange& range : ranges) {
    const AdamwPointers all{tensors.values.data<float>() + range.value_begin,
                            tensors.gradients.data<float>() + range.state_begin,
                            tensors.m.data<float>() + range.state_begin,
                            tensors.v.data<float>() + range.state_begin};
    Bf16* working = tensors.working.data<Bf16>();
    factors.decay = range.weight_decay ? 1.0F - step.lr * step.weight_decay : 1.0F;
#pragma omp parallel for schedule(static)
    for (std::int64_t begin = 0; begin < range.count; begin += kBlock) {
      const std::int64_t count = std::min(kBlock, range.count - begin);
      const AdamwPointers own{all.values + begin, all.gradients + begin, all.m + begin,
                              all.v + begin};
      update(own, factors, count);
      if (working == nullptr) continue;
      const std::int64_t at = range.value_begin + begin;
      if (step.stochastic_rounding)
        round_at_random(own.values, working + at, at, count, step);
      else
        round_to_nearest(own.values, working + at, count);
    }
  }
}

double CpuBackend::squared_norm(std::span<const Tensor> parts) {
  double sum = 0.0;
  for (const Tensor& x : parts) sum += blockwise_sum(x.elements(), SumOfSquares{x.data<float>()});
  return sum;
}

double CpuBackend::sum(const Tensor& x) {
  return blockwise_sum(x.elements(), Sum{x.data<float>()});
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
