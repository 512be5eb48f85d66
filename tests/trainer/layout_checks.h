#pragma once

#include <vector>

#include "model/tensor.h"
#include "parallel/communicator.h"
#include "trainer/run_config.h"

namespace scone {

/// What some steps of a run came to, gathered: comparable whatever the ranks and the grids.
struct Trajectory {
  std::vector<double> losses, gradient_norms, nodes_per_token;
  std::vector<std::string> names;             // of the parameters of both models
  std::vector<Tensor> gradients, parameters;  // of the first step; after the last step
  double validation_loss = 0;
};

/// Trains `steps` steps of a run over `world` (collective); the same result on every rank. Expects
/// that ranks which should hold the same gradients and parameters hold them bit for bit.
Trajectory run_trajectory(Communicator& world, const RunConfig& config, int steps);

/// The same run on one rank: grids, ZeRO, recomputation and overlap off, one microbatch.
RunConfig on_one_rank(RunConfig config);

/// Largest relative differences.
struct Deviation {
  double loss = 0, gradient_norm = 0, gradient = 0, parameter = 0, validation_loss = 0;
  double largest() const;
};
/// Of tensors: of any entry, relative to the tensor's largest.
Deviation compare(const Trajectory& found, const Trajectory& expected);

/// Expects the run over `world` to agree with `expected` to 1e-5; prints the deviation on rank 0.
void check_trajectory(Communicator& world, const RunConfig& config, const Trajectory& expected,
                      const std::string& what);

}  // namespace scone
