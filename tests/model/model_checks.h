#pragma once

#include "model/ops/ops.h"
#include "model_fixture.h"

namespace scone {

// GoogleTest checks of whole models on any backend, in fp32 or bf16. Print the errors.

/// Losses and gradients of a batch against the processor's in fp32.
void check_model(const ModelCase& model_case, Backend& backend, DType dtype);
/// The same bits twice.
void check_model_repeats(const ModelCase& model_case, Backend& backend, DType dtype);
/// The losses of AdamW steps on one batch against the processor's in fp32, and that they fall.
void check_model_steps(const ModelCase& model_case, Backend& backend, DType dtype, int steps);

}  // namespace scone
