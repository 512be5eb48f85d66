#pragma once

#include "model/ops/ops.h"

namespace scone {

/// Floating-point operations a second of one large matrix product ([1024, 1024] x [1024, 1024])
/// with this process' threads: the best of a few. What peak shares are shares of.
double measure_matrix_peak(Backend& backend, DType dtype);

}  // namespace scone
