#include "launch/plan/fgram_load.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>

#include "data/fgram_plan.h"
#include "model/fgram_model.h"
#include "trainer/embedding_source.h"

namespace scone {
namespace {

std::int64_t sum(const std::vector<std::int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

/// What of [cells, ranks] is not of `own`.
std::int64_t of_others(const std::vector<std::int64_t>& counts, const Communicator& group) {
  std::int64_t others = sum(counts);
  const auto ranks = static_cast<std::size_t>(group.size());
  for (auto at = static_cast<std::size_t>(group.rank()); at < counts.size(); at += ranks)
    others -= counts[at];
  return others;
}

RankLoad load_of(const Batch& batch, const RunGrids& grids, std::int64_t chunk_nodes) {
  const FgramPlan& plan = batch.plan;
  RankLoad load;
  load.rows_asked = sum(plan.rows.asked_counts);
  load.rows_served = sum(plan.rows.served_counts);
  load.rows_asked_of_others = of_others(plan.rows.asked_counts, grids.world);
  load.rows_served_to_others = of_others(plan.rows.served_counts, grids.world);
  load.trie_nodes = plan.trie.size();
  for (const TrieChunk& chunk : trie_chunks(plan.trie.depth, chunk_nodes))
    load.chunks.push_back(chunk.size());
  if (grids.main.tensor_size() == 1) return load;
  load.token_rows = plan.token_rows;
  load.token_rows_served = sum(plan.tokens.served_counts);
  load.token_rows_asked_of_others = of_others(plan.tokens.asked_counts, grids.main.tensor());
  load.token_rows_served_to_others = of_others(plan.tokens.served_counts, grids.main.tensor());
  return load;
}

}  // namespace

std::int64_t RankLoad::nodes_computed() const { return sum(chunks); }

FgramLoad survey_fgrams(const RunConfig& config, const RunData& data, int ranks, int batches) {
  FgramLoad load;
  load.steps.assign(static_cast<std::size_t>(batches),
                    std::vector<RankLoad>(static_cast<std::size_t>(ranks)));
  if (!data.vocabulary) return load;
  std::mutex mutex;
  std::int64_t nodes = 0;
  run_as_threads(ranks, [&](Communicator& world) {
    const RunGrids grids(world, config.parallel.main.tp, config.parallel.fgram.tp);
    FgramPlanner planner(*data.vocabulary, world, grids.main, grids.fgram);
    BatchStreamOptions options = batch_stream_options(config, grids.main);
    options.prefetch = 1;
    BatchStream stream(*data.train, data.vocabulary.get(), options, {}, &planner);
    for (auto& step : load.steps) {
      const Batch batch = stream.next();
      step[static_cast<std::size_t>(world.rank())] =
          load_of(batch, grids, config.model.fgram_chunk_nodes);
      const std::lock_guard lock(mutex);
      nodes += batch.plan.nodes + batch.plan.roots;
    }
  });
  load.nodes_per_token =
      static_cast<double>(nodes) / static_cast<double>(batches * config.trainer.batch_tokens);
  return load;
}

FgramLoad estimate_fgrams(const RunConfig& config, int ranks, double nodes_per_token) {
  FgramLoad load{{{RankLoad{}}}, true, 0};
  if (config.model.fgram.layers == 0) return load;
  load.nodes_per_token = nodes_per_token;
  RankLoad& rank = load.steps[0][0];
  const auto share_of = [](std::int64_t whole, int parts) { return (whole + parts - 1) / parts; };
  const int main_tp = config.parallel.main.tp, groups = ranks / config.parallel.fgram.tp;
  rank.rows_asked = share_of(config.trainer.batch_tokens, ranks);
  rank.rows_served = rank.rows_asked;
  rank.rows_asked_of_others = rank.rows_asked * (ranks - 1) / ranks;
  rank.rows_served_to_others = rank.rows_asked_of_others;
  const auto nodes = static_cast<std::int64_t>(
      std::ceil(nodes_per_token * static_cast<double>(config.trainer.batch_tokens)));
  const std::int64_t own = share_of(nodes, groups);
  rank.trie_nodes = groups == 1 ? own : own + std::min(own / 2, config.model.vocabulary_size);
  const std::int64_t most = config.model.fgram_chunk_nodes;
  const std::int64_t repeats = (config.model.fgram.context - 1) / 2;  // of each chunk but the first
  for (std::int64_t left = rank.trie_nodes; left > 0;) {
    const std::int64_t repeated = left == rank.trie_nodes ? 0 : repeats;
    rank.chunks.push_back(std::min(most, left + repeated));
    left -= rank.chunks.back() - repeated;
  }
  if (main_tp == 1) return load;
  rank.token_rows = std::min(config.model.vocabulary_size, rank.trie_nodes);
  rank.token_rows_served = rank.token_rows;
  rank.token_rows_asked_of_others = rank.token_rows * (main_tp - 1) / main_tp;
  rank.token_rows_served_to_others = rank.token_rows_asked_of_others;
  return load;
}

}  // namespace scone
