#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/plan/fgram_load.h"
#include "parallel/traffic.h"
#include "trainer/run_config.h"

namespace scone {

/// How a run's ranks lie: the sizes of both grids.
struct PlanGrids {
  PlanGrids(const RunConfig& config, int all_ranks)
      : ranks(all_ranks),
        main_tp(config.parallel.main.tp),
        main_dp(all_ranks / main_tp),
        fgram_tp(config.parallel.fgram.tp),
        fgram_dp(all_ranks / fgram_tp) {}
  int ranks, main_tp, main_dp, fgram_tp, fgram_dp;
};

/// The parts of a step that collectives belong to.
enum class StepPart { main_model, fgram_model, exchange, reduction, update, numbers };

/// Collectives of one purpose in one step of one rank.
struct PlannedCollective {
  std::string purpose;
  std::string group;          // the communicator's name
  int ranks = 0, stride = 1;  // of the group; world ranks between neighbours in it
  CollectiveKind kind = CollectiveKind::all_reduce;
  StepPart part = StepPart::numbers;
  CollectiveCount count;  // bytes as CollectiveCount counts them
};

/// Sequences of a global batch that a rank trains on.
std::int64_t sequences_of_rank(const RunConfig& config, const PlanGrids& grids, int rank);

/// Elements that a rank's slices of a model's buckets have under ZeRO-1: of the flat buffers of
/// `elements`, cut over `part.count` replicas.
std::int64_t sliced_elements(std::int64_t elements, std::int64_t bucket_elements, const Part& part);

/// Every collective of a step that is not skipped, in the order of the step, in groups of two ranks
/// or more: what Trainer::step_traffic() counts. config: with what the data fill in.
std::vector<PlannedCollective> plan_collectives(const RunConfig& config, const PlanGrids& grids,
                                                int rank, const RankLoad& load);

}  // namespace scone
