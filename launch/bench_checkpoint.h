#pragma once

#include "launch/command.h"

namespace scone {

/// Declares `checkpoint` below `scone bench`: speed of writing and reading checkpoints beside dd on
/// the same disk, and how long a save keeps the step, synchronous and asynchronous.
void add_bench_checkpoint(CLI::App& bench, Action& action);

}  // namespace scone
