#include "data/ngram_counter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "data/fgram_vocabulary_builder.h"
#include "data/sample_permutation.h"
#include "data/size_suffix.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using Tokens = std::vector<std::int32_t>;
using Counts = std::map<Tokens, std::int64_t>;  // by length apart, lexicographic inside

/// Every n-gram inside documents, counted with no cleverness at all.
std::map<std::size_t, Counts> brute_force(const Documents& documents, int max_length,
                                          std::int64_t min_count) {
  std::map<std::size_t, Counts> all;
  for (const auto& document : documents) {
    for (std::size_t n = 2; n <= static_cast<std::size_t>(max_length); ++n) {
      for (std::size_t i = 0; i + n <= document.size(); ++i) {
        ++all[n][Tokens(document.begin() + static_cast<std::ptrdiff_t>(i),
                        document.begin() + static_cast<std::ptrdiff_t>(i + n))];
      }
    }
  }
  for (auto& [n, counts] : all) {
    std::erase_if(counts, [&](const auto& entry) { return entry.second < min_count; });
  }
  return all;
}

/// Spells out the levels' keys.
std::map<std::size_t, Counts> spelled(const std::vector<NgramLevel>& levels) {
  std::map<std::size_t, Counts> all;
  std::vector<Tokens> previous;
  for (std::size_t level = 0; level < levels.size(); ++level) {
    std::vector<Tokens> own;
    for (std::size_t i = 0; i < levels[level].keys.size(); ++i) {
      const std::uint64_t key = levels[level].keys[i];
      Tokens tokens = level == 0 ? Tokens{static_cast<std::int32_t>(key >> 32U)}
                                 : previous.at(static_cast<std::size_t>(key >> 32U));
      tokens.push_back(static_cast<std::int32_t>(key & 0xFFFFFFFFU));
      all[level + 2][tokens] = levels[level].counts[i];
      own.push_back(std::move(tokens));
    }
    EXPECT_TRUE(std::is_sorted(own.begin(), own.end()));
    previous = std::move(own);
  }
  return all;
}

struct Flat {
  Tokens tokens;
  std::vector<std::int64_t> offsets{0};
  Flat(const Documents& documents, std::size_t first, std::size_t last) {
    for (std::size_t d = first; d < last; ++d) {
      tokens.insert(tokens.end(), documents[d].begin(), documents[d].end());
      offsets.push_back(static_cast<std::int64_t>(tokens.size()));
    }
  }
};

TEST(NgramCounter, EqualsBruteForceOnAnyNumberOfRanks) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const int longest = seed % 3 == 0 ? 4 : 40;  // documents shorter than n
    const Documents documents =
        random_documents(seed, 60 + static_cast<int>(seed) * 10, longest, seed % 2 ? 6 : 50);
    const int max_length = 2 + static_cast<int>(seed % 4);
    const std::int64_t min_count = 1 + static_cast<std::int64_t>(seed % 5);
    auto expected = brute_force(documents, max_length, min_count);
    std::erase_if(expected, [](const auto& level) { return level.second.empty(); });
    ASSERT_FALSE(expected.empty());
    for (int ranks = 1; ranks <= 3; ++ranks) {
      run_as_threads(ranks, [&](Communicator& communicator) {
        const auto rank = static_cast<std::size_t>(communicator.rank());
        const auto size = static_cast<std::size_t>(ranks);
        const Flat own(documents, documents.size() * rank / size,
                       documents.size() * (rank + 1) / size);
        const auto levels =
            count_ngrams(communicator, own.tokens, own.offsets, {max_length, min_count, {}});
        EXPECT_EQ(spelled(levels), expected) << "seed " << seed << ", ranks " << ranks;
      });
    }
  }
}

TEST(NgramCounter, RanksByCountThenLengthThenTokens) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    const Documents documents = random_documents(seed, 200, 30, 8);
    std::vector<std::pair<Tokens, std::int64_t>> expected;
    for (const auto& [n, counts] : brute_force(documents, 4, 3)) {
      expected.insert(expected.end(), counts.begin(), counts.end());
    }
    std::sort(expected.begin(), expected.end(), [](const auto& a, const auto& b) {
      if (a.second != b.second) return a.second > b.second;
      if (a.first.size() != b.first.size()) return a.first.size() < b.first.size();
      return a.first < b.first;
    });
    const Flat flat(documents, 0, documents.size());
    const auto self = make_self_communicator();
    const auto levels = count_ngrams(*self, flat.tokens, flat.offsets, {4, 3, {}});
    for (const std::size_t size : {std::size_t{1}, std::size_t{37}, expected.size() / 2,
                                   expected.size(), expected.size() + 5}) {
      FgramBuildOptions options;
      options.size = static_cast<std::int64_t>(size);
      options.max_length = 4;
      options.min_count = 3;
      FgramBuildResult built = choose_fgrams(levels, options);
      built.contents.token_vocabulary_size = 8;
      const FgramVocabulary vocabulary(built.contents);
      const std::size_t chosen = std::min(size, expected.size());
      ASSERT_EQ(static_cast<std::size_t>(vocabulary.size()), chosen);
      EXPECT_EQ(built.cutoff_count, expected[chosen - 1].second);
      std::set<Tokens> all;
      for (std::size_t i = 0; i < chosen; ++i) {
        const auto id = static_cast<std::int64_t>(i);
        ASSERT_EQ(vocabulary.tokens(id), expected[i].first) << "id " << i;
        ASSERT_EQ(vocabulary.count(id), expected[i].second);
        all.insert(expected[i].first);
      }
      for (const Tokens& fgram : all) {  // closed under prefix and suffix
        if (fgram.size() == 2) continue;
        EXPECT_TRUE(all.count(Tokens(fgram.begin(), fgram.end() - 1)));
        EXPECT_TRUE(all.count(Tokens(fgram.begin() + 1, fgram.end())));
      }
    }
  }
}

TEST(NgramCounter, TakesEmptyRanksAndNothingAtAll) {
  run_as_threads(3, [](Communicator& communicator) {
    const Tokens tokens = communicator.rank() == 1 ? Tokens{1, 2, 1, 2} : Tokens{};
    const std::vector<std::int64_t> offsets{0, static_cast<std::int64_t>(tokens.size())};
    const auto levels = count_ngrams(communicator, tokens, offsets, {5, 2, {}});
    ASSERT_EQ(levels.size(), 1U);
    EXPECT_THAT(levels[0].keys, testing::ElementsAre(std::uint64_t{1} << 32U | 2U));
    EXPECT_THAT(levels[0].counts, testing::ElementsAre(2));
    EXPECT_TRUE(count_ngrams(communicator, {}, std::vector<std::int64_t>{0}, {5, 1, {}}).empty());
  });
}

TEST(NgramCounter, SingleTokenDocumentsHaveNone) {
  const Tokens tokens{4, 4, 4, 4};
  const std::vector<std::int64_t> offsets{0, 1, 2, 3, 4};
  const auto self = make_self_communicator();
  EXPECT_TRUE(count_ngrams(*self, tokens, offsets, {3, 1, {}}).empty());
}

TEST(SamplePermutation, IsOneAndDependsOnSeedAndEpoch) {
  for (const std::int64_t size : {1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097}) {
    const SamplePermutation permutation(7, 3, size);
    std::vector<bool> seen(static_cast<std::size_t>(size), false);
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t image = permutation(i);
      ASSERT_TRUE(image >= 0 && image < size && !seen[static_cast<std::size_t>(image)]);
      seen[static_cast<std::size_t>(image)] = true;
    }
    EXPECT_THROW(permutation(size), std::out_of_range);
  }
  const SamplePermutation a(7, 3, 1000);
  const SamplePermutation other_epoch(7, 4, 1000);
  const SamplePermutation other_seed(8, 3, 1000);
  int same_epoch = 0;
  int same_seed = 0;
  int fixed = 0;
  for (std::int64_t i = 0; i < 1000; ++i) {
    same_epoch += a(i) == other_epoch(i);
    same_seed += a(i) == other_seed(i);
    fixed += a(i) == i;
  }
  // Independent permutations agree in one place on average (Poisson): more than 10 has probability
  // 1e-8.
  EXPECT_LE(same_epoch, 10);
  EXPECT_LE(same_seed, 10);
  EXPECT_LE(fixed, 10);
}

TEST(SizeSuffix, ParsesAndRefuses) {
  EXPECT_EQ(parse_size("0"), 0);
  EXPECT_EQ(parse_size("512"), 512);
  EXPECT_EQ(parse_size("512K"), 512'000);
  EXPECT_EQ(parse_size("512Ki"), 524'288);
  EXPECT_EQ(parse_size("10M"), 10'000'000);
  EXPECT_EQ(parse_size("1.5G"), 1'500'000'000);
  EXPECT_EQ(parse_size("4Gi"), std::int64_t{4} << 30U);
  for (const char* bad : {"", "K", "-1", "1.", "1.5", "5KB", "5 K", "1.2345K", "9e9", "1Q",
                          "9999999999999999999", "99999999T"}) {
    EXPECT_THROW(parse_size(bad), InputError) << bad;
  }
}

}  // namespace
}  // namespace scone
