#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/plan/device_figures.h"
#include "launch/plan/fgram_load.h"
#include "launch/plan/planned_collective.h"
#include "launch/plan/rank_memory.h"
#include "launch/plan/step_time.h"
#include "trainer/run_config.h"

namespace scone {

/// What a run will take, before any of it is allocated.
struct RunPlan {
  RunConfig config;  // with the grids that it is for
  int ranks = 1;
  std::int64_t main_parameters = 0, fgram_parameters = 0;
  std::vector<RankMemory> memory;              // of the ranks, one where all are the same
  std::size_t largest = 0;                     // of them, the one with the most
  std::vector<PlannedCollective> collectives;  // of that rank, in the first of the steps
  Traffic traffic;      // of all ranks and steps of the load, as Trainer::step_traffic()
  StepFlops flops;      // of all ranks, a step
  StepSeconds seconds;  // of the slowest rank, mean of the steps

  double tokens_per_second() const {
    return static_cast<double>(config.trainer.batch_tokens) / seconds.sum();
  }
  /// Of the rank with the most: what must fit into the device, or on a processor all.
  std::int64_t bytes() const;
  std::int64_t host_bytes() const { return memory[largest].host_bytes(); }
  /// Of a full node, with the mapped file once.
  std::int64_t node_host_bytes(const DeviceFigures& device,
                               const VocabularyBytes& vocabulary) const;
  /// Whether there are no obstacles.
  bool fits(const DeviceFigures& device, const VocabularyBytes& vocabulary) const;
  /// Why the run cannot be, a line each; empty: it can.
  std::vector<std::string> obstacles(const DeviceFigures& device,
                                     const VocabularyBytes& vocabulary) const;
};

/// config: with model.vocabulary_size and model.fgram.context filled in, and grids that `ranks`
/// fit. load: of this configuration's grids. Allocates nothing of the models' size.
RunPlan plan_run(const RunConfig& config, int ranks, const FgramLoad& load,
                 const VocabularyBytes& vocabulary, const DeviceFigures& device);

/// All choices of tensor parallelism and ZeRO-1 for both models and of recomputation that the ranks
/// and models fit, by the estimate of estimate_fgrams: those that fit the memory, fastest first.
std::vector<RunPlan> search_grids(const RunConfig& config, int ranks, double nodes_per_token,
                                  const VocabularyBytes& vocabulary, const DeviceFigures& device);

}  // namespace scone
