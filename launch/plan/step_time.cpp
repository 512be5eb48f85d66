#include "launch/plan/step_time.h"

#include <algorithm>

#include "model/fgram_model.h"
#include "model/main_model.h"
#include "model/transformer.h"

namespace scone {
namespace {

constexpr double kActivationPasses = 6;  // written and read forward; read, and gradients, backward
constexpr double kWeightPasses = 3;      // forward, and for both gradients
constexpr double kBackwardShare = 2.0 / 3;

std::int64_t microbatches_of(const RunConfig& config, const PlanGrids& grids, int rank) {
  const std::int64_t sequences = sequences_of_rank(config, grids, rank);
  const std::int64_t size = config.trainer.microbatch_tokens / config.trainer.sequence_length;
  return std::max<std::int64_t>(1, (sequences + size - 1) / size);
}

/// Bytes that one row leaves in one block.
double block_bytes(TransformerConfig config, const TensorParallelSize& tp, DType dtype) {
  constexpr std::int64_t rows = 1024;
  const TransformerShape shape(config, tp, rows, dtype);
  const auto of_layers = [&](std::int64_t layers) {
    config.layers = layers;
    return static_cast<double>(
        TransformerActivations::bytes_of(config, shape, true, Recompute::none));
  };
  return (of_layers(2) - of_layers(1)) / rows;
}

double elements_of_rank(const std::vector<ParameterSpec>& specs, int tp) {
  return static_cast<double>(parameter_offsets(specs, tp).back());
}

/// Seconds of a model's optimizer: gradients zeroed, added to once a pass, read for the norm; then
/// AdamW on what the rank updates.
double update_bytes(double elements, double passes, bool zero, int dp) {
  const double updated = zero ? elements / dp : elements;
  return sizeof(float) * (elements * (1 + 2 * passes) + updated * (1 + 7));
}

}  // namespace

StepFlops flops_of_rank(const RunConfig& config, const PlanGrids& grids, int rank,
                        const RankLoad& load) {
  const ModelConfig& model = config.model;
  const double length = static_cast<double>(config.trainer.sequence_length);
  const double positions =
      static_cast<double>(sequences_of_rank(config, grids, rank)) * length / grids.main_tp;
  const double attended = (length + 1) / 2;
  const double width = static_cast<double>(model.main.width);
  const double body = forward_flops_per_token(model.main, attended);
  const double head = 2 * width * static_cast<double>(model.vocabulary_size);
  StepFlops flops;
  flops.main = 3 * positions * (body + head);
  const double layers = static_cast<double>(model.main.layers);
  const double again_layers = std::max(0.0, layers - 1);
  if (config.compute.recompute == Recompute::attention)
    flops.main_again = positions * again_layers * (6 * width * width + 4 * width * attended);
  if (config.compute.recompute == Recompute::block)
    flops.main_again = positions * body * again_layers / std::max(1.0, layers);
  if (model.fgram.layers == 0) return flops;
  const double node =
      forward_flops_per_token(model.fgram, static_cast<double>(model.fgram.context + 1) / 2);
  const auto nodes = static_cast<double>(load.nodes_computed()) / grids.fgram_tp;
  flops.fgram = 3 * nodes * node;
  if (model.fgram_recompute == FgramRecompute::chunk && !load.chunks.empty())
    flops.fgram_again = (nodes - static_cast<double>(load.chunks.back()) / grids.fgram_tp) * node;
  return flops;
}

LinkBytes link_bytes(const PlannedCollective& collective, int ranks_per_node) {
  const double ranks = collective.ranks;
  const auto bytes = static_cast<double>(collective.count.bytes);
  const double members = std::max(1, ranks_per_node / collective.stride);  // on one node, at most
  const bool one_node = ranks <= members;
  if (collective.kind == CollectiveKind::all_to_all) {
    const double across = one_node ? 0 : bytes * (ranks - members) / (ranks - 1);
    return {bytes - across, across};
  }
  const double rounds = collective.kind == CollectiveKind::all_reduce ? 2 : 1;
  const double sent = rounds * (ranks - 1) / ranks * bytes;
  const double across = one_node ? 0 : sent / members;  // one of a ring's ranks on each node
  return {sent - across, across};
}

double collective_seconds(const PlannedCollective& collective, const DeviceFigures& device) {
  const LinkBytes bytes = link_bytes(collective, device.ranks_per_node);
  const double node_rate = device.node_rate * device.link_share;
  const double network_rate = device.network_rate * device.link_share;
  const bool is_pairs = collective.kind == CollectiveKind::all_to_all;
  const double latency = static_cast<double>(collective.count.calls) *
                         ((bytes.across_nodes == 0 ? device.node_latency : device.network_latency) +
                          (is_pairs ? (collective.ranks - 1) * device.message_seconds : 0));
  const double within = bytes.within_node / node_rate, across = bytes.across_nodes / network_rate;
  // A ring's parts run at once.
  return (is_pairs ? within + across : std::max(within, across)) + latency;
}

StepSeconds predict_seconds(const RunConfig& config, const PlanGrids& grids, int rank,
                            const RankLoad& load, const std::vector<PlannedCollective>& collectives,
                            const DeviceFigures& device) {
  const ModelConfig& model = config.model;
  const DType dtype = config.compute.dtype;
  const auto element = static_cast<double>(size_of(dtype));
  const bool has_fgrams = model.fgram.layers > 0;
  const double matrix_rate = device.matrix_flops * device.matrix_share;
  const double memory_rate = device.memory_rate * device.memory_share;
  const StepFlops flops = flops_of_rank(config, grids, rank, load);
  const double positions =
      static_cast<double>(sequences_of_rank(config, grids, rank) * config.trainer.sequence_length);
  const auto microbatches = static_cast<double>(microbatches_of(config, grids, rank));
  const auto tp_of = [](const GridConfig& sharding) {
    return TensorParallelSize{sharding.tp, sharding.tp > 1 && sharding.sequence_parallel};
  };
  StepSeconds seconds;
  const double main_elements = elements_of_rank(main_parameter_specs(model), grids.main_tp);
  // On the processor the tile of logits stays in the cache.
  const double logits = config.compute.device == Device::cpu
                            ? 0
                            : element * static_cast<double>(model.vocabulary_size) / grids.main_tp;
  seconds.main_products = (flops.main + flops.main_again) / matrix_rate;
  seconds.main_memory = (positions * kActivationPasses *
                             (static_cast<double>(model.main.layers) *
                                  block_bytes(model.main, tp_of(config.parallel.main), dtype) +
                              logits) +
                         microbatches * kWeightPasses * main_elements * element) /
                        memory_rate;
  double state_bytes =
      update_bytes(main_elements, microbatches, config.parallel.main.zero > 0, grids.main_dp);
  const auto chunks = static_cast<double>(load.chunks.size());
  if (has_fgrams) {
    const double elements = elements_of_rank(fgram_parameter_specs(model), grids.fgram_tp);
    seconds.fgram_products = (flops.fgram + flops.fgram_again) / matrix_rate;
    seconds.fgram_memory = (static_cast<double>(load.nodes_computed()) * kActivationPasses *
                                static_cast<double>(model.fgram.layers) *
                                block_bytes(model.fgram, tp_of(config.parallel.fgram), dtype) +
                            chunks * kWeightPasses * elements * element) /
                           memory_rate;
    state_bytes += update_bytes(elements, chunks, config.parallel.fgram.zero > 0, grids.fgram_dp);
  }
  seconds.update = state_bytes / memory_rate;
  double main_reduction = 0, fgram_reduction = 0;
  for (const PlannedCollective& collective : collectives) {
    const double needed = collective_seconds(collective, device);
    switch (collective.part) {
      case StepPart::main_model:
        seconds.main_collectives += needed;
        break;
      case StepPart::fgram_model:
        seconds.fgram_collectives += needed;
        break;
      case StepPart::reduction:
        (collective.group.starts_with("main") ? main_reduction : fgram_reduction) += needed;
        break;
      case StepPart::exchange:
      case StepPart::numbers:
        seconds.exchange += needed;
        break;
      case StepPart::update:
        seconds.update += needed;
        break;
    }
  }
  // A processor reduces by itself what it also computes with.
  const bool overlaps = config.parallel.overlap && config.compute.device != Device::cpu;
  const double of_main = overlaps ? kBackwardShare * seconds.main_products / microbatches : 0;
  const double of_fgram =
      overlaps ? kBackwardShare * seconds.fgram_products / std::max(1.0, chunks) : 0;
  seconds.reduction =
      std::max(0.0, main_reduction - of_main) + std::max(0.0, fgram_reduction - of_fgram);
  return seconds;
}

}  // namespace scone
