#pragma once

#include "parallel/communicator.h"

namespace scone {

/// Trains a small run over `world` and, on every rank, the same run alone; asserts per-step losses,
/// gradient norms, gathered gradients, parameters and validation loss equal to 1e-5 relative, and
/// nodes computed once in the world.
void check_against_one_rank(Communicator& world, std::int64_t fgram_layers);

}  // namespace scone
