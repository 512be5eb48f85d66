#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "data/fgram_trie.h"
#include "data/fgram_vocabulary.h"
#include "parallel/process_grid.h"
#include "parallel/row_plan.h"

namespace scone {

/// What one rank must know of the f-grams of a global batch: which trie nodes its f-gram group
/// computes, who asks it for rows and whom it asks.
struct FgramPlan {
  FgramTrie trie;  // of this rank's f-gram tensor-parallel group; token: row of the token table
  RowPlan rows;    // over the world; served: node of the trie
  // Over the main tensor-parallel group, where that shares the token embedding: the token table is
  // the token_rows rows that the trie needs; served: row of this rank's part of the embedding.
  RowPlan tokens;
  std::int64_t token_rows = 0;
  // Counted once in the world: distinct nodes of two tokens or more, and distinct 1-token roots.
  std::int64_t nodes = 0, roots = 0;
};

/// Makes plans. Each f-gram of the global batch, with all its prefixes of two tokens or more, is
/// computed by one f-gram data-parallel group: that of a hash of its leading 2-gram, so that
/// subtrees stay whole. Within the group one rank, by a hash of the id, sends the row.
class FgramPlanner {
 public:
  /// Collective over world: takes communicators of its own from it and from the grids', so that one
  /// other thread may plan while these work. All must outlive this.
  FgramPlanner(const FgramVocabulary& vocabulary, Communicator& world, const ProcessGrid& main,
               const ProcessGrid& fgram);
  ~FgramPlanner();

  /// ids: distinct, ascending: the f-grams whose rows this rank needs; cell: of each, see
  /// plan_rows. Collective over the world.
  FgramPlan plan(std::span<const std::int64_t> ids, std::span<const std::uint8_t> cell = {},
                 int cells = 1);
  /// The paper's way, to compare with: every match is computed by itself, by the rank that needs
  /// it, with nothing shared. ids: one a match, repeats included. Needs an f-gram grid without
  /// tensor parallelism. Collective over the world.
  FgramPlan plan_unshared(std::span<const std::int64_t> ids,
                          std::span<const std::uint8_t> cell = {}, int cells = 1);
  /// In place of plan() or plan_unshared(), on a rank that cannot say what it needs: theirs throw
  /// on the other ranks.
  void refuse(int cells) { refuse_plan_rows(*world_, cells); }
  /// From any thread: a plan() that waits for other ranks throws.
  void cancel();

 private:
  void share_tokens(FgramPlan& plan);
  std::int64_t count_roots(const FgramTrie& trie);

  const FgramVocabulary& vocabulary_;
  std::unique_ptr<Communicator> world_, main_tensor_, fgram_tensor_;
  int fgram_groups_;
};

}  // namespace scone
