#pragma once

#include "model/ops/ops.h"
#include "model/parameter.h"
#include "parallel/process_grid.h"

namespace scone {

/// Compares what the layers of one model compute with among the ranks that must hold the same bits:
/// each shard over the data-parallel group, and replicated parameters over the tensor-parallel
/// group too. Reads every parameter once, and exchanges 8 bytes for each. Collective over `world`,
/// the grid's ranks. Throws std::runtime_error, the same on every rank, that names the first
/// parameter that differs, how many do, and which ranks agree with each other.
void check_replicas(const ParameterSet& parameters, const ProcessGrid& grid, Backend& backend,
                    Communicator& world);

}  // namespace scone
