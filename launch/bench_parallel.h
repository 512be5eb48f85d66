#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "launch/command.h"
#include "trainer/run_config.h"

namespace scone {

// The parts of `scone bench parallel`. Each is collective over the ranks, prints a table on rank 0
// unless --json was given, and returns what it measured.

/// GB/s of each collective over all ranks, by message size.
nlohmann::json bench_collectives(CommandContext& context);

/// Bytes of parameters, gradients and optimizer state of a rank for each model and every tp: as
/// predicted (the whole over tp, over dp with ZeRO-1), and as the process' resident memory grew.
nlohmann::json bench_memory(const RunConfig& config, CommandContext& context);

/// Step seconds of data-parallel and of tensor-parallel ranks against one rank with all their
/// threads: medians over `rounds` rounds in which each takes turns.
nlohmann::json bench_layouts(const RunConfig& config, int rounds, CommandContext& context);

/// Step seconds of SCONE runs, each against the same main model alone, and against the same run
/// with nothing shared between matches.
nlohmann::json bench_sharing(const std::vector<RunConfig>& runs, int rounds,
                             CommandContext& context);

}  // namespace scone
