#pragma once

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "model/ops/ops.h"

namespace scone {

using Doubles = std::vector<double>;

/// One operation with shapes: its inputs (filled with normal numbers), how a backend computes the
/// output and the gradients of all inputs from the output's, and the double-precision reference of
/// the output.
struct OpCase {
  std::string name;
  std::vector<Shape> inputs;
  Shape output;
  std::int64_t
      reduction;  // rounding steps on the longest way through the operation, for the tolerance
  std::function<void(Backend&, const std::vector<Tensor>& x, const Tensor& y)> forward;
  /// dx are zero at the start. Called after forward with the same x and y.
  std::function<void(Backend&, const std::vector<Tensor>& x, const Tensor& y, const Tensor& dy,
                     const std::vector<Tensor>& dx)>
      backward;
  std::function<Doubles(const std::vector<Doubles>& x)> reference;
};
/// How GoogleTest shows a case.
inline void PrintTo(const OpCase& op, std::ostream* out) { *out << op.name; }

/// Every differentiable operation of the backend interface.
std::vector<OpCase> op_cases();

}  // namespace scone
