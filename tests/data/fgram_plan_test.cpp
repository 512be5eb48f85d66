#include "data/fgram_plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <set>

#include "data/fgram_vocabulary_builder.h"
#include "data/token_corpus.h"
#include "parallel/sharding.h"
#include "shard_writer.h"

namespace scone {
namespace {

using Tokens = std::vector<std::int32_t>;
using Ids = std::vector<std::int64_t>;

struct Layout {
  int ranks, main_tp, fgram_tp;
};
std::vector<Layout> layouts() {
  std::vector<Layout> all;
  for (const int ranks : {1, 2, 3, 4, 6, 8})
    for (int main_tp = 1; main_tp <= ranks; ++main_tp)
      for (int fgram_tp = 1; fgram_tp <= ranks; ++fgram_tp)
        if (ranks % main_tp == 0 && ranks % fgram_tp == 0)
          all.push_back({ranks, main_tp, fgram_tp});
  return all;
}

/// An f-gram vocabulary counted over random documents of `tokens` tokens.
class Vocabulary {
 public:
  explicit Vocabulary(int tokens) {
    Documents documents = random_documents(5, 80, 60, 23);
    for (auto& document : documents)  // the last token included
      for (std::int32_t& token : document) token = tokens - 1 - token;
    write_shard(folder_ / "a.h5", documents, tokens);
    const TokenCorpus corpus({folder_.path()});
    FgramBuildOptions options;
    options.size = 300;
    options.max_length = 4;
    options.min_count = 2;
    const auto self = make_self_communicator();
    fgrams = std::make_unique<FgramVocabulary>(build_vocabulary(*self, corpus, options));
  }
  std::unique_ptr<FgramVocabulary> fgrams;

 private:
  TemporaryFolder folder_;
};

struct Wish {
  Ids ids;
  std::vector<std::uint8_t> cell;
};

/// The f-grams that each rank needs; some ranks need none.
std::vector<Wish> draw_wishes(std::uint64_t seed, int ranks, std::int64_t most,
                              const FgramVocabulary& fgrams, int cells) {
  std::mt19937_64 random(seed);
  std::vector<Wish> wishes(static_cast<std::size_t>(ranks));
  for (std::size_t r = 0; r < wishes.size(); ++r) {
    if (r % 4 == 3) continue;
    std::set<std::int64_t> ids;
    for (std::int64_t i = 0; i < most; ++i)
      ids.insert(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(fgrams.size())));
    wishes[r].ids.assign(ids.begin(), ids.end());
    for (std::size_t i = 0; i < ids.size(); ++i)
      wishes[r].cell.push_back(
          static_cast<std::uint8_t>(random() % static_cast<std::uint64_t>(cells)));
  }
  return wishes;
}

/// What a rank saw, for the checks over all of them.
struct Seen {
  std::set<Tokens> nodes;  // of two tokens or more, of its trie
  std::int64_t counted_nodes = 0, counted_roots = 0;
};

/// The tokens of each node, with token rows turned back into tokens.
std::vector<Tokens> paths_of(const FgramTrie& trie, const Ids& token_of_row) {
  std::vector<Tokens> paths;
  for (std::size_t i = 0; i < trie.token.size(); ++i) {
    Tokens path;
    if (trie.parent[i] >= 0) path = paths[static_cast<std::size_t>(trie.parent[i])];
    const auto row = static_cast<std::size_t>(trie.token[i]);
    path.push_back(token_of_row.empty() ? trie.token[i]
                                        : static_cast<std::int32_t>(token_of_row.at(row)));
    paths.push_back(path);
  }
  return paths;
}

/// rows[i] is the row of `width` that its owner serves from its `table`, cell by cell.
void fetch(Communicator& group, const RowPlan& plan, std::size_t width,
           const std::vector<float>& table, std::vector<float>& rows) {
  const auto ranks = static_cast<std::size_t>(group.size());
  auto served = plan.served.begin();
  auto asked = plan.asked.begin();
  for (std::size_t cell = 0; cell < static_cast<std::size_t>(plan.cells); ++cell) {
    const auto sent = std::span(plan.served_counts).subspan(cell * ranks, ranks);
    const auto received = std::span(plan.asked_counts).subspan(cell * ranks, ranks);
    std::vector<float> out, in;
    for (const auto end = served + std::accumulate(sent.begin(), sent.end(), std::int64_t{0});
         served != end; ++served)
      for (std::size_t k = 0; k < width; ++k)
        out.push_back(table[static_cast<std::size_t>(*served) * width + k]);
    const std::int64_t own = std::accumulate(received.begin(), received.end(), std::int64_t{0});
    in.resize(static_cast<std::size_t>(own) * width);
    group.all_to_all(std::as_bytes(std::span(out)), sent, std::as_writable_bytes(std::span(in)),
                     received, width * sizeof(float));
    for (std::size_t i = 0; i < static_cast<std::size_t>(own); ++i, ++asked)
      for (std::size_t k = 0; k < width; ++k)
        rows[static_cast<std::size_t>(*asked) * width + k] = in[i * width + k];
  }
}

/// The tokens that the token table's rows stand for, from what the owners serve.
Ids tokens_of_rows(Communicator& group, const RowPlan& plan, std::int64_t rows,
                   const FgramVocabulary& fgrams) {
  const std::int64_t extent =
      shard_shape({fgrams.token_vocabulary_size(), 1}, {.axis = 0}, group.size())[0];
  std::vector<float> part(static_cast<std::size_t>(extent));  // as if the embedding's width were 1
  std::iota(part.begin(), part.end(), static_cast<float>(extent * group.rank()));
  for (const std::int64_t row : plan.served) {
    EXPECT_GE(row, 0);
    EXPECT_LT(row, extent);
    EXPECT_LT(extent * group.rank() + row, fgrams.token_vocabulary_size());
  }
  std::vector<float> table(static_cast<std::size_t>(rows), -1.0F);
  fetch(group, plan, 1, part, table);
  return {table.begin(), table.end()};
}

Seen check_rank(Communicator& world, const Layout& layout, const FgramVocabulary& fgrams,
                FgramPlanner& planner, const ProcessGrid& main, const ProcessGrid& fgram,
                const Wish& own, int cells) {
  const FgramPlan plan = planner.plan(own.ids, own.cell, cells);
  const bool shares = layout.main_tp > 1;
  Ids token_of_row;
  if (shares) {
    token_of_row = tokens_of_rows(main.tensor(), plan.tokens, plan.token_rows, fgrams);
    EXPECT_EQ(std::set<std::int64_t>(token_of_row.begin(), token_of_row.end()).size(),
              token_of_row.size());
  } else {
    EXPECT_EQ(plan.token_rows, 0);
    EXPECT_TRUE(plan.tokens.asked.empty());
  }
  const std::vector<Tokens> paths = paths_of(plan.trie, token_of_row);
  Seen seen;
  seen.counted_nodes = plan.nodes;
  seen.counted_roots = plan.roots;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    EXPECT_EQ(plan.trie.depth[i], static_cast<std::int32_t>(paths[i].size()) - 1);
    if (paths[i].size() > 1) {
      EXPECT_TRUE(seen.nodes.insert(paths[i]).second) << "a node stands twice in the trie";
    }
  }
  // All ranks of the f-gram group compute the same nodes.
  const auto nodes = fgram.tensor().all_gather(std::as_bytes(std::span(plan.trie.fgram)));
  for (const auto& theirs : nodes) EXPECT_EQ(theirs, nodes.front());
  const auto parents = fgram.tensor().all_gather(std::as_bytes(std::span(plan.trie.parent)));
  for (const auto& theirs : parents) EXPECT_EQ(theirs, parents.front());

  // Served rows name the right nodes: each sends its node's number in the trie and its rank.
  for (const std::int64_t node : plan.rows.served) {
    EXPECT_GE(node, 0);
    EXPECT_LT(node, plan.trie.size());
  }
  const std::size_t width = static_cast<std::size_t>(fgrams.max_length()) + 1;
  std::vector<float> table(paths.size() * width, -1.0F);
  for (std::size_t i = 0; i < paths.size(); ++i)
    for (std::size_t k = 0; k < paths[i].size(); ++k)
      table[i * width + k] = static_cast<float>(paths[i][k]);
  std::vector<float> rows(own.ids.size() * width, -2.0F);
  fetch(world, plan.rows, width, table, rows);
  for (std::size_t i = 0; i < own.ids.size(); ++i) {
    const Tokens expected = fgrams.tokens(own.ids[i]);
    for (std::size_t k = 0; k < width; ++k)
      EXPECT_EQ(rows[i * width + k], k < expected.size() ? static_cast<float>(expected[k]) : -1.0F);
  }
  return seen;
}

void check_layout(const Layout& layout, const FgramVocabulary& fgrams, std::int64_t most,
                  std::uint64_t seed) {
  SCOPED_TRACE(fmt::format("{} ranks, main tp {}, f-gram tp {}, vocabulary {}", layout.ranks,
                           layout.main_tp, layout.fgram_tp, fgrams.token_vocabulary_size()));
  const int batches = 3, cells = 4;
  std::mutex mutex;
  std::vector<std::map<int, Seen>> seen(batches);  // by rank
  const auto wishes_of = [&](int batch) {
    return draw_wishes(seed + static_cast<std::uint64_t>(batch), layout.ranks,
                       batch == 1 ? 1 : most, fgrams, cells);
  };
  run_as_threads(layout.ranks, [&](Communicator& world) {
    omp_set_num_threads(1);
    const ProcessGrid main(world, layout.main_tp, "main"), fgram(world, layout.fgram_tp, "fgram");
    FgramPlanner planner(fgrams, world, main, fgram);
    for (int batch = 0; batch < batches; ++batch) {
      const std::vector<Wish> wishes = wishes_of(batch);
      const Seen own = check_rank(world, layout, fgrams, planner, main, fgram,
                                  wishes[static_cast<std::size_t>(world.rank())], cells);
      const std::lock_guard lock(mutex);
      seen[static_cast<std::size_t>(batch)][world.rank()] = own;
    }
  });
  for (int batch = 0; batch < batches; ++batch) {
    std::set<Tokens> expected;
    std::set<std::int32_t> roots;
    for (const Wish& wish : wishes_of(batch)) {
      for (const std::int64_t id : wish.ids) {
        const Tokens tokens = fgrams.tokens(id);
        roots.insert(tokens.front());
        for (std::size_t n = 2; n <= tokens.size(); ++n)
          expected.emplace(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n));
      }
    }
    std::size_t in_groups = 0;
    std::set<Tokens> all;
    std::int64_t nodes = 0, root_count = 0;
    for (const auto& [rank, own] : seen[static_cast<std::size_t>(batch)]) {
      nodes += own.counted_nodes;
      root_count += own.counted_roots;
      if (rank % layout.fgram_tp != 0) continue;
      in_groups += own.nodes.size();
      all.insert(own.nodes.begin(), own.nodes.end());
    }
    EXPECT_EQ(all, expected);
    EXPECT_EQ(in_groups, all.size()) << "a node is computed by two groups";
    EXPECT_EQ(nodes, static_cast<std::int64_t>(expected.size()));
    EXPECT_EQ(root_count, static_cast<std::int64_t>(roots.size()));
  }
}

TEST(FgramPlan, AgreesWithBruteForceOnEveryGrid) {
  const Vocabulary even(48), odd(49);  // of 49 tokens, the last ranks' parts end in padding
  for (const Layout& layout : layouts()) {
    check_layout(layout, *even.fgrams, 60, 10);
    check_layout(layout, *odd.fgrams, 200, 20);
  }
}

TEST(FgramPlan, NobodyNeedsAnything) {
  const Vocabulary vocabulary(48);
  for (const Layout& layout : layouts()) check_layout(layout, *vocabulary.fgrams, 0, 30);
}

// More ranks than tokens in a part: the last parts of the embedding hold none.
TEST(FgramPlan, EmptyPartsOfTheTokenEmbedding) {
  const Vocabulary vocabulary(25);  // parts of 4 over 8 ranks: the eighth is empty
  check_layout({8, 8, 1}, *vocabulary.fgrams, 100, 40);
  check_layout({8, 8, 8}, *vocabulary.fgrams, 100, 50);
}

TEST(FgramPlan, CancelEndsAPlanThatWaits) {
  const Vocabulary vocabulary(48);
  EXPECT_THROW(run_as_threads(2,
                              [&](Communicator& world) {
                                const ProcessGrid main(world, 1, "main"), fgram(world, 1, "fgram");
                                FgramPlanner planner(*vocabulary.fgrams, world, main, fgram);
                                if (world.rank() == 0) planner.plan({});
                                planner.cancel();
                              }),
               std::runtime_error);
}

TEST(FgramPlan, ARankThatCannotPlanLeavesNobodyWaiting) {
  const Vocabulary vocabulary(48);
  run_as_threads(3, [&](Communicator& world) {
    const ProcessGrid main(world, 1, "main"), fgram(world, 3, "fgram");
    FgramPlanner planner(*vocabulary.fgrams, world, main, fgram);
    for (const int cells : {1, 4}) {
      if (world.rank() == 1) {
        planner.refuse(cells);
        continue;
      }
      const std::vector<std::int64_t> ids = {0, 1, 2};
      const std::vector<std::uint8_t> cell(ids.size(), static_cast<std::uint8_t>(cells - 1));
      try {
        planner.plan(ids, cell, cells);
        ADD_FAILURE() << "nothing was thrown";
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(std::string(error.what()),
                  "rank 1 of plan of the world could not prepare its part of a batch; its own "
                  "message says why");
      }
    }
    planner.plan({});  // and the next plan works
  });
}

}  // namespace
}  // namespace scone
