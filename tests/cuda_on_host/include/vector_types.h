#pragma once

// The vector types of CUDA that our kernels use.

struct alignas(8) float2 {
  float x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3() = default;
  // NOLINTNEXTLINE: converts from a number, as CUDA's does.
  constexpr dim3(unsigned width, unsigned height = 1, unsigned depth = 1)
      : x(width), y(height), z(depth) {}
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
