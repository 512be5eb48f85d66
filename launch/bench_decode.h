#pragma once

#include "launch/command.h"

namespace scone {

/// `scone bench decode`: milliseconds a token with a table's rows, beside the main model alone.
void add_bench_decode(CLI::App& bench, Action& action);

}  // namespace scone
