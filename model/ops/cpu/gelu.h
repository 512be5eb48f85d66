// GPT-2's gelu on single numbers. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_GELU_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_GELU_H
#undef SCONE_MODEL_OPS_CPU_GELU_H
#else
#define SCONE_MODEL_OPS_CPU_GELU_H
#endif

#include <hwy/highway.h>

#include "model/ops/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

constexpr float kSqrtTwoOverPi = 0.7978845608028654F;
constexpr float kCubic = 0.044715F;

inline float gelu_of(float x) {
  const float inner = kSqrtTwoOverPi * (x + kCubic * x * x * x);
  return x * (1.0F - 1.0F / (fast_exp(2.0F * inner) + 1.0F));
}

inline float gelu_slope(float x) {
  const float t = fast_tanh(kSqrtTwoOverPi * (x + kCubic * x * x * x));
  const float slope = kSqrtTwoOverPi * (1.0F + 3.0F * kCubic * x * x);
  return 0.5F * (1.0F + t) + 0.5F * x * (1.0F - t * t) * slope;
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
