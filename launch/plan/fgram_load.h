#pragma once

#include <cstdint>
#include <vector>

#include "trainer/run_config.h"
#include "trainer/run_data.h"

namespace scone {

/// What the f-grams of one batch give one rank to do.
struct RankLoad {
  std::int64_t rows_asked = 0, rows_served = 0;  // of f-grams; itself included
  std::int64_t rows_asked_of_others = 0, rows_served_to_others = 0;
  std::int64_t trie_nodes = 0;       // of its f-gram tensor-parallel group
  std::vector<std::int64_t> chunks;  // nodes of each, repeats included
  // The token embeddings that the trie needs, where the main model's ranks share them out.
  std::int64_t token_rows = 0, token_rows_served = 0;
  std::int64_t token_rows_asked_of_others = 0, token_rows_served_to_others = 0;

  std::int64_t nodes_computed() const;
};

/// What the f-grams of some batches give all ranks to do.
struct FgramLoad {
  std::vector<std::vector<RankLoad>> steps;  // [batches][ranks]; of an estimate one of each
  bool estimated = false;
  double nodes_per_token = 0;  // distinct nodes, roots included, of the global batches
  const RankLoad& of(std::size_t step, int rank) const {
    const auto& ranks = steps[step];
    return ranks[estimated ? 0 : static_cast<std::size_t>(rank)];
  }
};

/// By planning the run's first `batches` batches as its ranks would, each as a thread: exact.
/// config: as open_run_data left it.
FgramLoad survey_fgrams(const RunConfig& config, const RunData& data, int ranks, int batches);

/// From the nodes a token alone; all ranks the same. At most: each position asks for a row of its
/// own. Assumed: a group computes a root for each two of its nodes, up to all tokens there are, for
/// groups that share roots compute them each. config: with the vocabulary size. nodes_per_token:
/// distinct nodes of the global batch, roots included.
FgramLoad estimate_fgrams(const RunConfig& config, int ranks, double nodes_per_token);

}  // namespace scone
