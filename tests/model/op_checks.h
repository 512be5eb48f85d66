#pragma once

#include "model/ops/ops.h"
#include "op_cases.h"

namespace scone {

// GoogleTest checks of any backend's operations, in fp32 or bf16.

/// The output against the double-precision reference on the same (rounded) inputs, the gradients
/// against the reference's central differences. Prints the errors.
void check_op(const OpCase& op, Backend& backend, DType dtype);
/// Three steps on ranges with gaps, with and without weight decay; with bf16 also the working copy,
/// rounded to the nearest.
void check_adamw(Backend& backend, DType dtype);
/// The bf16 copy rounded at random: each value by its 16 bits of Philox4x32-10, whatever the
/// ranges.
void check_stochastic_rounding(Backend& backend);
/// squared_norm of several tensors and sum, exactly, over sizes beyond one block of any loop.
void check_reductions(Backend& backend);
/// upload, download, copy and zero; with bf16 their conversions.
void check_moves(Backend& backend, DType dtype);

}  // namespace scone
