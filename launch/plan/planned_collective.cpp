#include "launch/plan/planned_collective.h"

#include <algorithm>
#include <utility>

#include "data/batch_stream.h"
#include "model/fgram_model.h"
#include "model/main_model.h"
#include "trainer/distributed_optimizer.h"

namespace scone {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
constexpr std::int64_t kStepNumbers = 11;  // that Trainer::reduce sums over the world

/// Adds up one rank's collectives.
class CollectiveList {
 public:
  CollectiveList(const RunConfig& config, const PlanGrids& grids)
      : config_(config),
        grids_(grids),
        element_(static_cast<std::int64_t>(size_of(config.compute.dtype))) {}

  void add(const std::string& purpose, const std::string& group, CollectiveKind kind, StepPart part,
           std::int64_t calls, std::int64_t bytes) {
    const auto [ranks, stride] = shape_of(group);
    if (ranks == 1 || calls == 0) return;
    const auto same = [&](const PlannedCollective& known) {
      return known.purpose == purpose && known.group == group && known.kind == kind;
    };
    auto at = std::find_if(list.begin(), list.end(), same);
    if (at == list.end())
      at = list.insert(list.end(), {purpose, group, ranks, stride, kind, part, {}});
    at->count.calls += calls;
    at->count.bytes += bytes;
  }

  /// Of one pass of `rows` rows through a transformer: reductions and, with sequence parallelism,
  /// gathers.
  void add_layers(const std::string& purpose, Grid grid, std::int64_t rows, std::int64_t reductions,
                  std::int64_t gathers) {
    const bool is_main = grid == Grid::main;
    const GridConfig& sharding = is_main ? config_.parallel.main : config_.parallel.fgram;
    const std::string group = is_main ? "main tensor-parallel" : "fgram tensor-parallel";
    const StepPart part = is_main ? StepPart::main_model : StepPart::fgram_model;
    const std::int64_t bytes = rows * config_.model.main.width * element_;
    add(purpose, group,
        sharding.sequence_parallel ? CollectiveKind::reduce_scatter : CollectiveKind::all_reduce,
        part, reductions, reductions * bytes);
    if (sharding.sequence_parallel)
      add(purpose, group, CollectiveKind::all_gather, part, gathers, gathers * bytes);
  }

  std::vector<PlannedCollective> list;

 private:
  std::pair<int, int> shape_of(const std::string& group) const {
    if (group == "world") return {grids_.ranks, 1};
    if (group == "main tensor-parallel") return {grids_.main_tp, 1};
    if (group == "main data-parallel") return {grids_.main_dp, grids_.main_tp};
    if (group == "fgram tensor-parallel") return {grids_.fgram_tp, 1};
    return {grids_.fgram_dp, grids_.fgram_tp};
  }

  const RunConfig& config_;
  const PlanGrids& grids_;
  std::int64_t element_;
};

void add_microbatch(const RunConfig& config, const PlanGrids& grids, std::int64_t positions,
                    CollectiveList& list) {
  const std::int64_t layers = config.model.main.layers;
  list.add_layers("embeddings", Grid::main, positions, 1, 0);
  list.add_layers("activations forward", Grid::main, positions, 2 * layers, 2 * layers + 1);
  const std::int64_t tile = MainModel::head_tile(config.compute.device, positions);
  list.add("statistics of the head", "main tensor-parallel", CollectiveKind::all_gather,
           StepPart::main_model, (positions + tile - 1) / tile,
           positions * grids.main_tp * 3 * kFloat);
  list.add_layers("activations backward", Grid::main, positions, 2 * layers + 1, 4 * layers + 1);
  const std::int64_t again = std::max<std::int64_t>(0, layers - 1);
  if (config.compute.recompute == Recompute::attention)
    list.add_layers("activations computed again", Grid::main, positions, 0, again);
  if (config.compute.recompute == Recompute::block)
    list.add_layers("activations computed again", Grid::main, positions, again, 2 * again);
}

void add_fgram_model(const RunConfig& config, const RankLoad& load, CollectiveList& list) {
  const std::int64_t layers = config.model.fgram.layers;
  const bool recomputes = config.model.fgram_recompute == FgramRecompute::chunk;
  for (std::size_t i = 0; i < load.chunks.size(); ++i) {
    const std::int64_t nodes = load.chunks[i];
    list.add_layers("activations forward", Grid::fgram, nodes, 2 * layers, 2 * layers + 1);
    if (recomputes && i + 1 < load.chunks.size())
      list.add_layers("activations computed again", Grid::fgram, nodes, 2 * layers, 2 * layers);
    list.add_layers("activations backward", Grid::fgram, nodes, 2 * layers, 4 * layers);
  }
  list.add("row gradients of the group", "fgram tensor-parallel", CollectiveKind::all_reduce,
           StepPart::exchange, 1, load.trie_nodes * config.model.main.width * kFloat);
}

void add_exchange(const RunConfig& config, const RankLoad& load, CollectiveList& list) {
  const std::int64_t row = config.model.main.width * kFloat;
  const auto exchange = [&](const char* purpose, const char* group, std::int64_t calls,
                            std::int64_t rows) {
    list.add(purpose, group, CollectiveKind::all_to_all, StepPart::exchange, calls, rows * row);
  };
  exchange("token embeddings to nodes", "main tensor-parallel", 1,
           load.token_rows_served_to_others);
  exchange("f-gram rows to positions", "world", BatchCells::count, load.rows_served_to_others);
  exchange("row gradients to owners", "world", BatchCells::count, load.rows_asked_of_others);
  exchange("token gradients from nodes", "main tensor-parallel", 1,
           load.token_rows_asked_of_others);
}

/// Elements from `begin` to `end` of a model's flat buffers that are of parameters for which
/// counts(spec). Only such as are not cut over the tensor-parallel group.
template <class Counts>
std::int64_t whole_elements(const std::vector<ParameterSpec>& specs,
                            const std::vector<std::int64_t>& offsets, std::int64_t begin,
                            std::int64_t end, Counts&& counts) {
  std::int64_t count = 0;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (!counts(specs[i])) continue;
    std::int64_t extent = 1;
    for (const std::int64_t dimension : specs[i].shape) extent *= dimension;
    count +=
        std::max<std::int64_t>(0, std::min(end, offsets[i] + extent) - std::max(begin, offsets[i]));
  }
  return count;
}

/// The gradients of one model over its replicas, and with ZeRO-1 its values.
void add_reduction(const RunConfig& config, const PlanGrids& grids, Grid grid,
                   CollectiveList& list) {
  const bool is_main = grid == Grid::main;
  const GridConfig& sharding = is_main ? config.parallel.main : config.parallel.fgram;
  const int tp = is_main ? grids.main_tp : grids.fgram_tp;
  const int dp = is_main ? grids.main_dp : grids.fgram_dp;
  const std::string model = is_main ? "main" : "fgram";
  const auto specs =
      is_main ? main_parameter_specs(config.model) : fgram_parameter_specs(config.model);
  const std::vector<std::int64_t> offsets = parameter_offsets(specs, tp);
  const std::int64_t elements = offsets.back(), size = config.parallel.bucket_elements;
  const std::int64_t buckets = (elements + size - 1) / size;
  const bool zero = sharding.zero > 0 && dp > 1;
  list.add("gradients", model + " data-parallel",
           zero ? CollectiveKind::reduce_scatter : CollectiveKind::all_reduce, StepPart::reduction,
           buckets, elements * kFloat);
  if (zero)
    list.add("updated values", model + " data-parallel", CollectiveKind::all_gather,
             StepPart::update, buckets,
             elements * static_cast<std::int64_t>(size_of(config.compute.dtype)));
  if (tp == 1) return;
  const auto add_sum = [&](const char* purpose, std::int64_t count) {
    if (count > 0)
      list.add(purpose, model + " tensor-parallel", CollectiveKind::all_reduce, StepPart::reduction,
               1, count * kFloat);
  };
  // Sums of what each rank of a tensor-parallel group has of its rows, bucket by bucket.
  for (std::int64_t begin = 0; sharding.sequence_parallel && begin < elements; begin += size)
    add_sum("gradients of norms",
            whole_elements(specs, offsets, begin, std::min(begin + size, elements),
                           [](const ParameterSpec& spec) { return spec.sums_rows; }));
  // With ZeRO those of its slices, of which this is the mean.
  const std::int64_t replicated =
      whole_elements(specs, offsets, 0, elements,
                     [](const ParameterSpec& spec) { return spec.replicated(); }) /
      (zero ? dp : 1);
  if (config.compute.device == Device::cuda) add_sum("gradients of the first rank", replicated);
}

}  // namespace

std::int64_t sequences_of_rank(const RunConfig& config, const PlanGrids& grids, int rank) {
  const std::int64_t sequences = config.trainer.batch_tokens / config.trainer.sequence_length;
  const std::int64_t replica = rank / grids.main_tp;
  return sequences * (replica + 1) / grids.main_dp - sequences * replica / grids.main_dp;
}

std::int64_t sliced_elements(std::int64_t elements, std::int64_t bucket_elements,
                             const Part& part) {
  std::int64_t sliced = 0;
  for (std::int64_t begin = 0; begin < elements; begin += bucket_elements)
    sliced +=
        DistributedOptimizer::slice_of_bucket(std::min(bucket_elements, elements - begin), part)
            .count;
  return sliced;
}

std::vector<PlannedCollective> plan_collectives(const RunConfig& config, const PlanGrids& grids,
                                                int rank, const RankLoad& load) {
  const bool has_fgrams = config.model.fgram.layers > 0;
  CollectiveList list(config, grids);
  const auto add_numbers = [&](const char* purpose, std::int64_t numbers) {
    list.add(purpose, "world", CollectiveKind::all_reduce, StepPart::numbers, 1, numbers * 8);
  };
  add_numbers("number of targets", 1);
  if (has_fgrams) add_exchange(config, load, list);
  const std::int64_t length = config.trainer.sequence_length;
  const std::int64_t sequences = sequences_of_rank(config, grids, rank);
  const std::int64_t microbatch = config.trainer.microbatch_tokens / length;
  for (std::int64_t first = 0; first < sequences; first += microbatch)
    add_microbatch(config, grids, std::min(microbatch, sequences - first) * length, list);
  if (has_fgrams) add_fgram_model(config, load, list);
  add_reduction(config, grids, Grid::main, list);
  if (has_fgrams) add_reduction(config, grids, Grid::fgram, list);
  add_numbers("loss, norm and times", kStepNumbers);
  return std::move(list.list);
}

}  // namespace scone
