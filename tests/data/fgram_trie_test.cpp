#include "data/fgram_trie.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "data/fgram_vocabulary_builder.h"
#include "shard_writer.h"

namespace scone {
namespace {

using Tokens = std::vector<std::int32_t>;

FgramVocabulary make_vocabulary(std::uint64_t seed) {
  const TemporaryFolder folder;
  write_shard(folder / "shard.h5", random_documents(seed, 300, 60, 30), 30);
  const TokenCorpus corpus({folder / "shard.h5"});
  FgramBuildOptions options;
  options.size = 3000;
  options.min_count = 2;
  const auto self = make_self_communicator();
  return build_vocabulary(*self, corpus, options);
}

TEST(FgramTrie, HoldsEveryFgramAndPrefixOnceInPreorder) {
  std::mt19937_64 random(5);
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const FgramVocabulary vocabulary = make_vocabulary(seed);
    for (const int one_in : {1, 3, 100}) {
      std::vector<std::int64_t> ids;
      std::set<Tokens> expected;
      for (std::int64_t id = 0; id < vocabulary.size(); ++id) {
        if (random() % static_cast<unsigned>(one_in) != 0) continue;
        ids.push_back(id);
        const Tokens tokens = vocabulary.tokens(id);
        for (std::size_t n = 1; n <= tokens.size(); ++n) {
          expected.insert(Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n)));
        }
      }
      const FgramTrie trie = build_fgram_trie(vocabulary, ids);
      std::vector<Tokens> paths;
      std::int64_t roots = 0;
      for (std::size_t node = 0; node < trie.token.size(); ++node) {
        Tokens path;
        if (trie.parent[node] >= 0) {
          ASSERT_LT(trie.parent[node], static_cast<std::int32_t>(node));
          path = paths[static_cast<std::size_t>(trie.parent[node])];
          EXPECT_EQ(vocabulary.tokens(trie.fgram[node]).back(), trie.token[node]);
        } else {
          ++roots;
          EXPECT_EQ(trie.fgram[node], -1);
        }
        path.push_back(trie.token[node]);
        ASSERT_EQ(trie.depth[node] + 1, static_cast<std::int32_t>(path.size()));
        if (trie.fgram[node] >= 0) {
          EXPECT_EQ(vocabulary.tokens(trie.fgram[node]), path);
        }
        paths.push_back(std::move(path));
      }
      // Preorder with siblings by token is the lexicographic order of the paths: nodes distinct,
      // subtrees whole.
      EXPECT_EQ(paths, std::vector<Tokens>(expected.begin(), expected.end()));
      EXPECT_EQ(trie.roots, roots);
      ASSERT_EQ(trie.node_of_fgram.size(), ids.size());
      for (std::size_t i = 0; i < ids.size(); ++i) {
        EXPECT_EQ(trie.fgram[static_cast<std::size_t>(trie.node_of_fgram[i])], ids[i]);
      }
    }
  }
}

TEST(FgramTrie, OfNothingIsEmpty) {
  const FgramTrie trie = build_fgram_trie(make_vocabulary(0), {});
  EXPECT_EQ(trie.size(), 0);
  EXPECT_EQ(trie.roots, 0);
}

}  // namespace
}  // namespace scone
