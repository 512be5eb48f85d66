#pragma once

#include "launch/command.h"

namespace scone {

/// `scone bench table`: look-ups, size and build time of an f-gram table, beside other stores.
void add_bench_table(CLI::App& bench, Action& action);

}  // namespace scone
