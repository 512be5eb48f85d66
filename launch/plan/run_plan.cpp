#include "launch/plan/run_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/fgram_index.h"
#include "model/fgram_model.h"
#include "model/main_model.h"

namespace scone {
namespace {

/// Of each of a rank's counts the most of any batch; chunks are those of the batch with most nodes.
RankLoad most_of(const FgramLoad& load, int rank) {
  RankLoad most;
  for (std::size_t step = 0; step < load.steps.size(); ++step) {
    const RankLoad& one = load.of(step, rank);
    for (const auto member :
         {&RankLoad::rows_asked, &RankLoad::rows_served, &RankLoad::rows_asked_of_others,
          &RankLoad::rows_served_to_others, &RankLoad::token_rows, &RankLoad::token_rows_served,
          &RankLoad::token_rows_asked_of_others, &RankLoad::token_rows_served_to_others})
      most.*member = std::max(most.*member, one.*member);
    if (one.trie_nodes >= most.trie_nodes) {
      most.trie_nodes = one.trie_nodes;
      most.chunks = one.chunks;
    }
  }
  return most;
}

void add_to(Traffic& traffic, const std::vector<PlannedCollective>& collectives,
            std::int64_t ranks) {
  for (const PlannedCollective& planned : collectives) {
    CollectiveCount& count =
        traffic.group(planned.group, planned.ranks).kinds[static_cast<std::size_t>(planned.kind)];
    count.calls += ranks * planned.count.calls;
    count.bytes += ranks * planned.count.bytes;
  }
}

bool divides(int tp, const TransformerConfig& model) {
  return model.heads % tp == 0 && model.ffw % tp == 0 && model.width % tp == 0;
}

}  // namespace

std::int64_t RunPlan::bytes() const {
  const RankMemory& most = memory[largest];
  return most.device_bytes() +
         (config.compute.device == Device::cpu ? most.host_bytes() : std::int64_t{0});
}

std::int64_t RunPlan::node_host_bytes(const DeviceFigures& device,
                                      const VocabularyBytes& vocabulary) const {
  const std::int64_t on_node = std::min(ranks, device.ranks_per_node);
  const std::int64_t each = config.compute.device == Device::cpu ? bytes() : host_bytes();
  return on_node * each + (config.model.fgram.layers > 0 ? vocabulary.mapped_bytes : 0);
}

bool RunPlan::fits(const DeviceFigures& device, const VocabularyBytes& vocabulary) const {
  return obstacles(device, vocabulary).empty();
}

std::vector<std::string> RunPlan::obstacles(const DeviceFigures& device,
                                            const VocabularyBytes& vocabulary) const {
  std::vector<std::string> found;
  const auto gigabytes = [](std::int64_t size) { return static_cast<double>(size) / 1e9; };
  if (bytes() > device.memory)
    found.push_back(fmt::format("a rank needs {:.1f} GB, {} has {:.1f}", gigabytes(bytes()),
                                device.name, gigabytes(device.memory)));
  const std::int64_t host = node_host_bytes(device, vocabulary);
  if (host > device.host_memory)
    found.push_back(fmt::format("a node's host needs {:.1f} GB of memory, and has {:.1f}",
                                gigabytes(host), gigabytes(device.host_memory)));
  if (vocabulary.fgrams > FgramIndex::most_fgrams)
    found.push_back(fmt::format("{} f-grams are more than the {} that an id of 31 bits can name",
                                vocabulary.fgrams, FgramIndex::most_fgrams));
  return found;
}

RunPlan plan_run(const RunConfig& config, int ranks, const FgramLoad& load,
                 const VocabularyBytes& vocabulary, const DeviceFigures& device) {
  RunPlan plan;
  plan.config = config;
  plan.ranks = ranks;
  plan.main_parameters = global_elements(main_parameter_specs(config.model));
  plan.fgram_parameters = global_elements(fgram_parameter_specs(config.model));
  const PlanGrids grids(config, ranks);
  const std::size_t steps = load.steps.size();
  std::vector<StepSeconds> slowest(steps);
  // Of an estimate a rank with the most sequences stands for all.
  int fullest = 0;
  for (int rank = 1; load.estimated && rank < ranks; ++rank)
    if (sequences_of_rank(config, grids, rank) > sequences_of_rank(config, grids, fullest))
      fullest = rank;
  const int first = load.estimated ? fullest : 0, end = load.estimated ? fullest + 1 : ranks;
  for (int rank = first; rank < end; ++rank) {
    plan.memory.push_back(plan_memory(config, grids, rank, most_of(load, rank), vocabulary));
    const auto bytes = [](const RankMemory& memory) {
      return memory.device_bytes() + memory.host_bytes();
    };
    const bool most =
        plan.memory.size() == 1 || bytes(plan.memory.back()) > bytes(plan.memory[plan.largest]);
    if (most) plan.largest = plan.memory.size() - 1;
    for (std::size_t step = 0; step < steps; ++step) {
      const RankLoad& one = load.of(step, rank);
      const auto collectives = plan_collectives(config, grids, rank, one);
      if (most && step == 0) plan.collectives = collectives;
      add_to(plan.traffic, collectives, load.estimated ? ranks : 1);
      const StepFlops flops = flops_of_rank(config, grids, rank, one);
      const double share = (load.estimated ? ranks : 1) / static_cast<double>(steps);
      plan.flops.main += flops.main * share;
      plan.flops.fgram += flops.fgram * share;
      plan.flops.main_again += flops.main_again * share;
      plan.flops.fgram_again += flops.fgram_again * share;
      const StepSeconds seconds = predict_seconds(config, grids, rank, one, collectives, device);
      if (seconds.sum() > slowest[step].sum()) slowest[step] = seconds;
    }
  }
  const auto mean = [&](double StepSeconds::*part) {
    double sum = 0;
    for (const StepSeconds& step : slowest) sum += step.*part;
    plan.seconds.*part = sum / static_cast<double>(steps);
  };
  for (const auto part :
       {&StepSeconds::main_products, &StepSeconds::main_memory, &StepSeconds::main_collectives,
        &StepSeconds::fgram_products, &StepSeconds::fgram_memory, &StepSeconds::fgram_collectives,
        &StepSeconds::exchange, &StepSeconds::reduction, &StepSeconds::update})
    mean(part);
  return plan;
}

std::vector<RunPlan> search_grids(const RunConfig& config, int ranks, double nodes_per_token,
                                  const VocabularyBytes& vocabulary, const DeviceFigures& device) {
  const bool has_fgrams = config.model.fgram.layers > 0;
  const std::int64_t sequences = config.trainer.batch_tokens / config.trainer.sequence_length;
  const auto grids_of = [&](const TransformerConfig& model, GridConfig grid, bool searched) {
    std::vector<GridConfig> found;
    for (int tp = 1; tp <= ranks; ++tp) {
      if (ranks % tp != 0 || !divides(tp, model)) continue;
      for (const int zero : {0, 1}) {
        if (zero == 1 && tp == ranks) continue;  // one replica has nothing to cut
        grid.tp = tp;
        grid.zero = zero;
        found.push_back(grid);
        if (!searched) return found;
      }
    }
    return found;
  };
  std::vector<RunPlan> plans;
  RunConfig tried = config;
  for (const GridConfig& main : grids_of(config.model.main, config.parallel.main, true)) {
    if (ranks / main.tp > sequences) continue;
    tried.parallel.main = main;
    for (const GridConfig& fgram :
         grids_of(config.model.fgram, config.parallel.fgram, has_fgrams)) {
      if (!config.fgrams.share && fgram.tp > 1) continue;
      tried.parallel.fgram = fgram;
      const FgramLoad load = estimate_fgrams(tried, ranks, nodes_per_token);
      for (const Recompute recompute : {Recompute::none, Recompute::attention, Recompute::block}) {
        tried.compute.recompute = recompute;
        RunPlan plan = plan_run(tried, ranks, load, vocabulary, device);
        if (plan.fits(device, vocabulary)) plans.push_back(std::move(plan));
      }
    }
  }
  std::stable_sort(plans.begin(), plans.end(), [](const RunPlan& a, const RunPlan& b) {
    return a.seconds.sum() < b.seconds.sum();
  });
  return plans;
}

}  // namespace scone
