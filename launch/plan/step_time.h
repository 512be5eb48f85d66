#pragma once

#include <vector>

#include "launch/plan/device_figures.h"
#include "launch/plan/fgram_load.h"
#include "launch/plan/planned_collective.h"
#include "trainer/run_config.h"

namespace scone {

/// Floating-point operations of a step, as the trainer counts them (without what is computed
/// again), and of it all.
struct StepFlops {
  double main = 0, fgram = 0;              // forward and backward
  double main_again = 0, fgram_again = 0;  // recomputation
};
/// Of one rank; the sums over the ranks are the step's.
StepFlops flops_of_rank(const RunConfig& config, const PlanGrids& grids, int rank,
                        const RankLoad& load);

/// What one rank sends in a collective, and by which links.
struct LinkBytes {
  double within_node = 0, across_nodes = 0;
};
LinkBytes link_bytes(const PlannedCollective& collective, int ranks_per_node);
double collective_seconds(const PlannedCollective& collective, const DeviceFigures& device);

/// Predicted seconds of a step by part. The model: products at matrix_share of the device's rate;
/// activations go through memory six times, weights three times a microbatch, optimizer state once,
/// at memory_share of its rate; all-reduce, reduce-scatter and all-gather as rings, all-to-all as
/// pairs, at link_share of the link's rate, plus a latency a call (and a pair's message); one after
/// the other, but for reductions that run under the backward pass of the last microbatch or chunk
/// (parallel.overlap, on a device).
struct StepSeconds {
  double main_products = 0, main_memory = 0, main_collectives = 0;
  double fgram_products = 0, fgram_memory = 0, fgram_collectives = 0;
  double exchange = 0, reduction = 0, update = 0;
  double sum() const {
    return main_products + main_memory + main_collectives + fgram_products + fgram_memory +
           fgram_collectives + exchange + reduction + update;
  }
};
StepSeconds predict_seconds(const RunConfig& config, const PlanGrids& grids, int rank,
                            const RankLoad& load, const std::vector<PlannedCollective>& collectives,
                            const DeviceFigures& device);

}  // namespace scone
