#pragma once

#include <cstdint>

#include "trainer/run_config.h"

namespace scone {

/// Learning rate of a step (0-based), of which the f-gram model takes fgram_lr_ratio: linear
/// warm-up to peak_lr over warmup_steps, then by schedule over the rest of the run down to
/// final_lr_ratio * peak_lr: a half cosine; constant with a linear fall over the last
/// decay_fraction of all steps (wsd); or constant without a fall.
double learning_rate(const RunConfig& config, std::int64_t step);

}  // namespace scone
