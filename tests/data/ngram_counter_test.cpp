#include "data/ngram_counter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <map>
#include <mutex>
#include <set>

#include "data/fgram_vocabulary_builder.h"
#include "data/ngram_key.h"
#include "data/ngram_store.h"
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

/// Adds this rank's n-grams, spelled out.
void spell(const std::vector<NgramLevelFile>& levels, int bits,
           std::map<std::size_t, Counts>& all) {
  for (const NgramLevelFile& level : levels) {
    with_key_words(level.length, bits, [&]<int Words>() {
      using Record = NgramRecord<Words>;
      read_level(level, sizeof(Record), [&](std::span<const std::byte> bytes) {
        const auto* records = reinterpret_cast<const Record*>(bytes.data());
        for (std::size_t i = 0; i < bytes.size() / sizeof(Record); ++i) {
          NgramKey<Words> key = records[i].key;
          Tokens tokens(static_cast<std::size_t>(level.length));
          for (std::size_t t = tokens.size(); t-- > 0;) {
            tokens[t] = static_cast<std::int32_t>(key.last_token(bits));
            key.drop_last(bits);
          }
          const auto count = static_cast<std::int64_t>(records[i].count);
          EXPECT_TRUE(all[tokens.size()].emplace(std::move(tokens), count).second);
        }
      });
    });
  }
}

constexpr std::int64_t enough_memory = std::int64_t{4} << 30U;

/// What `ranks` ranks find together in the shard.
std::map<std::size_t, Counts> counted(const std::filesystem::path& shard, int ranks,
                                      NgramCounterOptions options,
                                      const std::filesystem::path& spill) {
  std::map<std::size_t, Counts> all;
  std::mutex mutex;
  run_as_threads(ranks, [&](Communicator& communicator) {
    const TokenCorpus corpus({shard});
    SpillFolder folder(spill, communicator.rank(), ranks);
    const auto levels = count_ngrams(communicator, corpus, options, folder);
    const std::lock_guard lock(mutex);
    spell(levels, bits_of_token(corpus.vocabulary_size()), all);
  });
  return all;
}

TEST(NgramCounter, EqualsBruteForceOnAnyNumberOfRanks) {
  const TemporaryFolder folder;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const int longest = seed % 3 == 0 ? 4 : 40;  // documents shorter than n
    const int vocabulary = seed % 2 ? 6 : 50;
    const Documents documents =
        random_documents(seed, 60 + static_cast<int>(seed) * 10, longest, vocabulary);
    const int max_length = 2 + static_cast<int>(seed % 4);
    const std::int64_t min_count = 1 + static_cast<std::int64_t>(seed % 5);
    auto expected = brute_force(documents, max_length, min_count);
    std::erase_if(expected, [](const auto& level) { return level.second.empty(); });
    ASSERT_FALSE(expected.empty());
    // Keys of one word, and of two or four where the ids take 16 or 24 bits.
    const std::int64_t vocabulary_size =
        std::vector<std::int64_t>{vocabulary, 65'000, 1 << 24}[seed / 2 % 3];
    write_shard(folder / "shard.h5", documents, vocabulary_size);
    for (int ranks = 1; ranks <= 3; ++ranks) {
      EXPECT_EQ(counted(folder / "shard.h5", ranks, {max_length, min_count, enough_memory, 0, {}},
                        folder / "spill"),
                expected)
          << "seed " << seed << ", ranks " << ranks << ", vocabulary " << vocabulary_size;
    }
  }
}

TEST(NgramCounter, SpillsAndMergesToTheSame) {
  const TemporaryFolder folder;
  const Documents documents = random_documents(3, 3000, 200, 400);
  write_shard(folder / "shard.h5", documents, 400);
  const auto expected = brute_force(documents, 4, 2);
  std::int64_t spilled = 0;
  NgramCounterOptions options{4, 2, enough_memory, 0, {}};
  EXPECT_EQ(counted(folder / "shard.h5", 1, options, folder / "spill"), expected);
  for (int ranks = 1; ranks <= 2; ++ranks) {
    // The least that it asks for.
    options.memory_bytes = 1;
    try {
      counted(folder / "shard.h5", ranks, options, folder / "spill");
      FAIL() << "nothing was thrown";
    } catch (const InputError& error) {
      const std::string text = error.what();
      const std::size_t at = text.find("give --memory ");
      ASSERT_NE(at, std::string::npos) << text;
      options.memory_bytes =
          std::stoll(text.substr(at + 14)) * 1'000'000 + (std::int64_t{1} << 20U);
    }
    options.progress = [&](const NgramProgress& progress) {
      if (progress.ngrams >= 0) spilled += progress.spilled_bytes;
    };
    EXPECT_EQ(counted(folder / "shard.h5", ranks, options, folder / "spill"), expected);
    options.progress = {};
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "spill"));
  std::printf("%lld bytes spilled\n", static_cast<long long>(spilled));
  EXPECT_GT(spilled, 100'000);
}

TEST(NgramStore, MergesMoreRunsThanItHasBuffersFor) {
  const TemporaryFolder folder;
  SpillFile spill = SpillFile::create(folder / "runs", false);
  MemoryBudget budget(0);  // every 48 distinct keys are a run
  NgramStore<2> store(0, 1, budget, spill);
  std::map<std::uint64_t, std::uint64_t> expected;
  std::uint64_t state = 5;
  for (int i = 0; i < 20'000; ++i) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    NgramRecord<2> record;
    record.key.words = {state >> 60U, state >> 54U};
    record.count = 1 + state % 3;
    expected[record.key.words[1]] += record.count;
    store.add(0, 1, [&](std::size_t) { return record; });
  }
  ASSERT_GT(spill.size(), 100 * 48 * 24);
  std::map<std::uint64_t, std::uint64_t> found;
  NgramKey<2> before;
  store.finish(0, 30, 3 * 8192, [&](const NgramRecord<2>& record) {
    EXPECT_TRUE(found.empty() || before < record.key);
    before = record.key;
    found[record.key.words[1]] = record.count;
  });
  std::erase_if(expected, [](const auto& entry) { return entry.second < 30; });
  EXPECT_GT(expected.size(), 100U);
  EXPECT_EQ(found, expected);
}

TEST(NgramCounter, GoesOnAfterTheScansThatWereDone) {
  const TemporaryFolder folder;
  const Documents documents = random_documents(4, 300, 60, 50);
  write_shard(folder / "shard.h5", documents, 50);
  std::vector<int> counted_scans, taken_scans;
  NgramCounterOptions options{4, 2, enough_memory, 0, {}};
  options.progress = [&](const NgramProgress& progress) {
    if (progress.ngrams >= 0)
      (progress.from_before ? taken_scans : counted_scans).push_back(progress.scan);
  };
  const auto run = [&](int max_length, std::int64_t min_count) {
    counted_scans.clear();
    taken_scans.clear();
    options.max_length = max_length;
    options.min_count = min_count;
    const TokenCorpus corpus({folder / "shard.h5"});
    const auto self = make_self_communicator();
    SpillFolder spill(folder / "spill", 0, 1);
    const auto levels = count_ngrams(*self, corpus, options, spill);
    std::map<std::size_t, Counts> found;
    spell(levels, bits_of_token(50), found);
    EXPECT_EQ(found, brute_force(documents, max_length, min_count));
    // As a process that is killed leaves it, with a scan begun.
    std::filesystem::copy(folder / "spill", folder / "killed",
                          std::filesystem::copy_options::recursive);
    std::ofstream(folder / "killed/rank-0/level-9") << "half";
  };
  const auto leftover = [&] { std::filesystem::rename(folder / "killed", folder / "spill"); };
  run(3, 2);
  EXPECT_THAT(counted_scans, testing::ElementsAre(1, 2));
  leftover();
  run(4, 2);
  EXPECT_THAT(taken_scans, testing::ElementsAre(1, 2));
  EXPECT_THAT(counted_scans, testing::ElementsAre(3));
  EXPECT_FALSE(std::filesystem::exists(folder / "killed/rank-0/level-9.partial"));
  leftover();
  std::filesystem::resize_file(folder / "spill/rank-0/level-3", 100);  // not whole
  run(4, 2);
  EXPECT_THAT(taken_scans, testing::ElementsAre(1));
  leftover();
  run(3, 3);  // another minimum: nothing is taken
  EXPECT_THAT(taken_scans, testing::IsEmpty());
  EXPECT_FALSE(std::filesystem::exists(folder / "spill"));
}

TEST(NgramCounter, AFolderInUseIsRefused) {
  const TemporaryFolder folder;
  const SpillFolder first(folder / "spill", 0, 1);
  EXPECT_THROW(SpillFolder(folder / "spill", 0, 1), InputError);
  {
    const SpillFolder second(folder / "spill", 1, 2);  // of another rank, and alive
    EXPECT_TRUE(std::filesystem::exists(folder / "spill/rank-1"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "spill/rank-1"));
}

TEST(NgramCounter, WhatIsInAFolderOfSomethingElseStays) {
  const TemporaryFolder folder;
  for (const char* rank : {"logs/rank-0", "logs/rank-5"}) {
    std::filesystem::create_directories(folder / rank);
    std::ofstream(folder / rank / "log.txt") << "a line";
  }
  EXPECT_THROW(SpillFolder(folder / "logs", 0, 1), InputError);
  EXPECT_TRUE(std::filesystem::exists(folder / "logs/rank-0/log.txt"));
  { const SpillFolder spill(folder / "logs", 1, 2); }
  EXPECT_FALSE(std::filesystem::exists(folder / "logs/rank-1"));
  EXPECT_TRUE(std::filesystem::exists(folder / "logs/rank-5/log.txt"));

  std::filesystem::create_directory(folder / "disk");
  std::filesystem::create_directory_symlink(folder / "disk", folder / "link");
  { const SpillFolder spill(folder / "link", 0, 1); }
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_TRUE(std::filesystem::is_empty(folder / "disk"));
}

TEST(NgramCounter, RanksByCountThenLengthThenTokens) {
  const TemporaryFolder folder;
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    const Documents documents = random_documents(seed, 200, 30, 8);
    write_shard(folder / "shard.h5", documents, 8);
    const TokenCorpus corpus({folder / "shard.h5"});
    std::vector<std::pair<Tokens, std::int64_t>> expected;
    for (const auto& [n, counts] : brute_force(documents, 4, 3)) {
      expected.insert(expected.end(), counts.begin(), counts.end());
    }
    std::sort(expected.begin(), expected.end(), [](const auto& a, const auto& b) {
      if (a.second != b.second) return a.second > b.second;
      if (a.first.size() != b.first.size()) return a.first.size() < b.first.size();
      return a.first < b.first;
    });
    const auto self = make_self_communicator();
    for (const std::size_t size : {std::size_t{1}, std::size_t{37}, expected.size() / 2,
                                   expected.size(), expected.size() + 5}) {
      FgramBuildOptions options;
      options.size = static_cast<std::int64_t>(size);
      options.max_length = 4;
      options.min_count = 3;
      const FgramBuildResult built =
          build_fgram_vocabulary(*self, corpus, options, folder / "fgrams.h5");
      const FgramVocabulary vocabulary(folder / "fgrams.h5");
      const std::size_t chosen = std::min(size, expected.size());
      ASSERT_EQ(static_cast<std::size_t>(vocabulary.size()), chosen);
      EXPECT_EQ(built.cutoff_count, expected[chosen - 1].second);
      std::set<Tokens> all;
      std::vector<std::int64_t> by_length(5, 0);
      for (std::size_t i = 0; i < chosen; ++i) {
        const auto id = static_cast<std::int64_t>(i);
        ASSERT_EQ(vocabulary.tokens(id), expected[i].first) << "id " << i;
        ASSERT_EQ(vocabulary.count(id), expected[i].second);
        all.insert(expected[i].first);
        ++by_length[expected[i].first.size()];
      }
      EXPECT_EQ(built.chosen, by_length);
      for (const Tokens& fgram : all) {  // closed under prefix and suffix
        if (fgram.size() == 2) continue;
        EXPECT_TRUE(all.count(Tokens(fgram.begin(), fgram.end() - 1)));
        EXPECT_TRUE(all.count(Tokens(fgram.begin() + 1, fgram.end())));
      }
    }
  }
}

TEST(NgramCounter, TakesFewerTokensThanRanksAndNothingAtAll) {
  const TemporaryFolder folder;
  write_shard(folder / "shard.h5", {{1, 2, 1, 2}}, 8);
  const std::map<std::size_t, Counts> expected{{2, {{{1, 2}, 2}}}};
  EXPECT_EQ(counted(folder / "shard.h5", 6, {5, 2, enough_memory, 0, {}}, folder / "spill"),
            expected);
  write_shard(folder / "shard.h5", {{4}, {4}, {4}, {4}}, 8);  // documents of one token have none
  EXPECT_TRUE(
      counted(folder / "shard.h5", 2, {3, 1, enough_memory, 0, {}}, folder / "spill").empty());
}

TEST(NgramCounter, AFileThatCannotGrowIsToldWithTheSpace) {
  const TemporaryFolder folder;
  write_shard(folder / "shard.h5", random_documents(3, 3000, 200, 400), 400);
  struct rlimit before {};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, before.rlim_max};
  for (int ranks = 1; ranks <= 2; ++ranks) {
    setrlimit(RLIMIT_FSIZE, &small);
    std::string message;
    try {
      counted(folder / "shard.h5", ranks, {4, 2, enough_memory, 0, {}}, folder / "spill");
    } catch (const InputError& error) {
      message = error.what();
    }
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_THAT(message, testing::HasSubstr("MB are free"));
    EXPECT_FALSE(std::filesystem::exists(folder / "spill"));
  }
  std::signal(SIGXFSZ, handler);
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
