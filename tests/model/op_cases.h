#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "model/ops/ops.h"

namespace scone {

using Doubles = std::vector<double>;

/// What types an input and its gradient have when an operation runs in a given one: both that one
/// (stream), the input alone (parameter), neither (fp32).
enum class OpRole { stream, parameter, fp32 };

struct OpInput {
  Shape shape;
  OpRole role = OpRole::stream;
};

/// One operation with shapes: its inputs (filled with normal numbers), how a backend computes the
/// output and the gradients of all inputs from the output's, and the double-precision reference of
/// the output.
struct OpCase {
  std::string name;
  std::vector<OpInput> inputs;
  OpInput output;
  std::int64_t
      reduction;  // rounding steps on the longest way through the operation, for the tolerance
  std::function<void(Backend&, const std::vector<Tensor>& x, const Tensor& y)> forward;
  /// dx are zero at the start. Called after forward with the same x and y.
  std::function<void(Backend&, const std::vector<Tensor>& x, const Tensor& y, const Tensor& dy,
                     const std::vector<Tensor>& dx)>
      backward;
  std::function<Doubles(const std::vector<Doubles>& x)> reference;
  double bf16_roundings = 4;  // of values of the output's size on the way, with bf16 tensors
};
/// How GoogleTest shows a case.
inline void PrintTo(const OpCase& op, std::ostream* out) { *out << op.name; }

/// Every differentiable operation of the backend interface.
std::vector<OpCase> op_cases();

/// An int32 tensor of the backend's device.
Tensor integers(Backend& backend, const std::vector<std::int32_t>& values);
/// The values of a tensor of any device, fp32 or bf16.
std::vector<float> values_of(Backend& backend, const Tensor& tensor);

}  // namespace scone
