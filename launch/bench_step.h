#pragma once

#include "launch/command.h"

namespace scone {

/// Declares `step` below `scone bench`: training steps of named model shapes on synthetic tokens,
/// on the processor or a GPU: tokens/s, share of the measured matrix peak, memory, and f-gram
/// rows/s as in baking.
void add_bench_step(CLI::App& bench, Action& action);

}  // namespace scone
