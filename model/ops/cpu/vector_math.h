// Functions in operations that the compiler vectorises. Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_VECTOR_MATH_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_VECTOR_MATH_H
#undef SCONE_MODEL_OPS_CPU_VECTOR_MATH_H
#else
#define SCONE_MODEL_OPS_CPU_VECTOR_MATH_H
#endif

#include <hwy/highway.h>

#include <bit>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

/// exp(x) to about 2 ulp, in operations that the compiler vectorises. Below -87.3 the result is
/// exp(-87.3), about 1e-38; above 88 it is exp(88). NaN stays NaN.
inline float fast_exp(float x) {
  x = x < -87.3F ? -87.3F : x;
  x = x > 88.0F ? 88.0F : x;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504088896341F + kRound;
  const float n = shifted - kRound;
  // ln 2 in two parts, so that the reduced argument is exact to rounding.
  const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000U;
  return p * std::bit_cast<float>(exponent);
}

/// tanh(x) to about 2e-7 absolute.
inline float fast_tanh(float x) { return 1.0F - 2.0F / (fast_exp(2.0F * x) + 1.0F); }

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
