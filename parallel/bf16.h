#pragma once

#include <bit>
#include <cstdint>

namespace scone {

/// A bfloat16 number: the upper half of a float. Holds its bits alone; arithmetic is done in float.
struct Bf16 {
  std::uint16_t bits;
  friend bool operator==(Bf16, Bf16) = default;  // of the bits: -0 differs from 0
};

inline float to_float(Bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

/// The nearest bfloat16, of two equally near ones that with an even last bit; beyond the largest
/// one infinity. NaN stays NaN, made quiet, with its sign and the upper bits of its payload.
inline Bf16 to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace scone
