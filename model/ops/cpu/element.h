#pragma once

#include "model/tensor.h"
#include "parallel/bf16.h"

namespace scone {

// Elements of the floating-point tensors that the operations are written for, float and Bf16:
// arithmetic is done in float.

inline float to_float(float value) { return value; }

template <class T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline Bf16 from_float<Bf16>(float value) {
  return to_bf16(value);
}

inline bool is_bf16(const Tensor& tensor) { return tensor.dtype() == DType::bf16; }

}  // namespace scone
