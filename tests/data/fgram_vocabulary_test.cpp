#include "data/fgram_vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>

#include "data/fgram_vocabulary_builder.h"
#include "data/hdf5_file.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using Tokens = std::vector<std::int32_t>;

FgramBuildOptions options_of(std::int64_t size) {
  FgramBuildOptions options;
  options.size = size;
  options.min_count = 3;
  return options;
}

/// The first `size` f-grams of a file as contents in memory.
FgramVocabularyContents contents_of(const FgramVocabulary& vocabulary, std::int64_t size) {
  FgramVocabularyContents contents;
  contents.token_vocabulary_size = vocabulary.token_vocabulary_size();
  contents.max_length = 5;
  for (std::int64_t id = 0; id < size; ++id) {
    contents.prefix.push_back(vocabulary.length(id) == 2 ? -1 - vocabulary.first_token(id)
                                                         : vocabulary.prefix(id));
    contents.last_token.push_back(static_cast<std::uint32_t>(vocabulary.last_token(id)));
    contents.length.push_back(static_cast<std::uint8_t>(vocabulary.length(id)));
    contents.count.push_back(static_cast<std::uint64_t>(vocabulary.count(id)));
  }
  return contents;
}

class FgramVocabularyTest : public testing::Test {
 protected:
  FgramVocabularyTest() {
    write_shard(shard_, random_documents(1, 300, 60, 40), 40);
    build_fgram_vocabulary(*self_, TokenCorpus({shard_}), options_of(1200), file_);
  }
  TemporaryFolder folder_;
  std::filesystem::path shard_ = folder_ / "shard.h5", file_ = folder_ / "fgrams.h5";
  std::unique_ptr<Communicator> self_ = make_self_communicator();
};

/// The longest match by trying every start, in a map of whole f-grams.
std::vector<std::int64_t> naive_match(const std::map<Tokens, std::int64_t>& ids,
                                      const Tokens& tokens, std::size_t longest) {
  std::vector<std::int64_t> result(tokens.size(), -1);
  for (std::size_t end = 1; end < tokens.size(); ++end) {
    for (std::size_t n = std::min(longest, end + 1); n >= 2 && result[end] < 0; --n) {
      const auto last = tokens.begin() + static_cast<std::ptrdiff_t>(end) + 1;
      const auto found = ids.find(Tokens(last - static_cast<std::ptrdiff_t>(n), last));
      if (found != ids.end()) result[end] = found->second;
    }
  }
  return result;
}

TEST_F(FgramVocabularyTest, MatchEqualsNaiveLongestMatch) {
  for (const std::int64_t size : {0, 5, 300}) {
    for (const int max_length : {0, 2, 3}) {
      const FgramVocabulary vocabulary(file_, size, max_length);
      EXPECT_EQ(vocabulary.size(), size == 0 ? 1200 : size);
      std::map<Tokens, std::int64_t> ids;
      for (std::int64_t id = 0; id < vocabulary.size(); ++id) {
        if (max_length == 0 || vocabulary.length(id) <= max_length) ids[vocabulary.tokens(id)] = id;
      }
      std::int64_t matched = 0;
      for (const Tokens& document : random_documents(99, 100, 200, 40)) {
        std::vector<std::int64_t> found(document.size(), 12345);
        vocabulary.match(document, found);
        ASSERT_EQ(found, naive_match(ids, document, 5));
        for (const std::int64_t id : found) matched += id >= 0;
      }
      EXPECT_GT(matched, 100);
    }
  }
}

TEST_F(FgramVocabularyTest, NavigatesAndRoundTrips) {
  const FgramVocabulary vocabulary(file_);
  EXPECT_EQ(vocabulary.token_vocabulary_size(), 40);
  EXPECT_EQ(vocabulary.tokenizer_fingerprint(), "0123");
  int longest = 0;
  for (std::int64_t id = 0; id < vocabulary.size(); ++id) {
    const Tokens tokens = vocabulary.tokens(id);
    longest = std::max(longest, vocabulary.length(id));
    ASSERT_EQ(static_cast<int>(tokens.size()), vocabulary.length(id));
    EXPECT_EQ(vocabulary.first_token(id), tokens.front());
    EXPECT_EQ(vocabulary.last_token(id), tokens.back());
    EXPECT_EQ(vocabulary.tokens(vocabulary.leading_bigram(id)), Tokens({tokens[0], tokens[1]}));
    if (tokens.size() == 2) {
      EXPECT_EQ(vocabulary.prefix(id), -1);
      EXPECT_EQ(vocabulary.child(tokens[0], tokens[1]), id);
    } else {
      EXPECT_EQ(vocabulary.tokens(vocabulary.prefix(id)), Tokens(tokens.begin(), tokens.end() - 1));
      EXPECT_EQ(vocabulary.child(vocabulary.prefix(id), tokens.back()), id);
    }
  }
  EXPECT_EQ(vocabulary.max_length(), longest);
  EXPECT_EQ(vocabulary.child(std::int64_t{-1}, 3), -1);
  const FgramVocabulary first(file_, 100);
  first.save(folder_ / "first.h5");
  const FgramVocabulary again(folder_ / "first.h5");
  EXPECT_EQ(again.size(), 100);
  EXPECT_EQ(again.fingerprint(), first.fingerprint());
  EXPECT_NE(again.fingerprint(), vocabulary.fingerprint());
  EXPECT_NE(FgramVocabulary(file_, 0, 2).fingerprint(), vocabulary.fingerprint());
}

TEST_F(FgramVocabularyTest, SameBytesOnOneTwoAndThreeRanks) {
  const std::string expected = bytes_of_file(file_);
  for (int ranks = 2; ranks <= 3; ++ranks) {
    run_as_threads(ranks, [&](Communicator& communicator) {
      build_fgram_vocabulary(communicator, TokenCorpus({shard_}), options_of(1200),
                             folder_ / "again.h5");
    });
    EXPECT_TRUE(bytes_of_file(folder_ / "again.h5") == expected) << ranks << " ranks";
  }
}

TEST_F(FgramVocabularyTest, RefusesBadFilesAndOptions) {
  EXPECT_THROW(FgramVocabulary(shard_, 0, 0), InputError);         // foreign
  EXPECT_THROW(FgramVocabulary(folder_ / "none.h5"), InputError);  // missing
  EXPECT_THROW(FgramVocabulary(file_, 1201), InputError);          // more than it holds
  EXPECT_THROW(FgramVocabulary(file_, 10, 1), InputError);         // an f-gram has 2 tokens
  std::filesystem::copy_file(file_, folder_ / "cut.h5");
  std::filesystem::resize_file(folder_ / "cut.h5", std::filesystem::file_size(file_) / 2);
  EXPECT_THROW(FgramVocabulary(folder_ / "cut.h5"), InputError);

  const FgramVocabularyContents good = contents_of(FgramVocabulary(file_), 50);
  EXPECT_NO_THROW(FgramVocabulary{good});
  FgramVocabularyContents bad = good;
  bad.prefix[3] = 3;
  EXPECT_THROW(FgramVocabulary{bad}, InputError);
  bad = good;
  bad.length[0] = 3;
  EXPECT_THROW(FgramVocabulary{bad}, InputError);
  bad = good;
  bad.last_token[7] = 40;
  EXPECT_THROW(FgramVocabulary{bad}, InputError);
  bad = good;
  bad.count[9] = bad.count[8] + 1;
  EXPECT_THROW(FgramVocabulary{bad}, InputError);
  bad = good;
  bad.prefix[1] = bad.prefix[0];
  bad.last_token[1] = bad.last_token[0];
  bad.length[1] = bad.length[0];
  EXPECT_THROW(FgramVocabulary{bad}, InputError);
}

TEST_F(FgramVocabularyTest, AChangeThatFitsTheOthersIsFoundByTheChecksum) {
  const std::int64_t last = FgramVocabulary(file_).size() - 1;
  const std::int64_t count = FgramVocabulary(file_).count(last);
  ASSERT_LT(count, 256);
  const std::int64_t offset = Hdf5File::open(file_).dataset_offset("/count") + 8 * last;
  {
    std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(offset);
    file.put(static_cast<char>(count - 1));
  }
  EXPECT_NO_THROW(FgramVocabulary(file_, last));  // all but the changed one
  try {
    const FgramVocabulary vocabulary(file_);
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("expected checksum"));
  }
}

TEST_F(FgramVocabularyTest, SavedContentsAreTheFile) {
  const FgramVocabulary vocabulary(file_);
  FgramVocabularyContents contents = contents_of(vocabulary, 1200);
  contents.tokenizer_fingerprint = "0123";
  contents.corpus_fingerprint = TokenCorpus({shard_}).fingerprint();
  contents.corpus_tokens = TokenCorpus({shard_}).tokens();
  contents.min_count = 3;
  const FgramVocabulary again(std::move(contents));
  EXPECT_EQ(again.fingerprint(), vocabulary.fingerprint());
  again.save(folder_ / "contents.h5");
  vocabulary.save(folder_ / "mapped.h5");
  EXPECT_TRUE(bytes_of_file(folder_ / "contents.h5") == bytes_of_file(file_));
  EXPECT_TRUE(bytes_of_file(folder_ / "mapped.h5") == bytes_of_file(file_));
}

TEST_F(FgramVocabularyTest, MatchesOfKnownLengthsAreTheSame) {
  const FgramVocabulary vocabulary(file_);
  for (const Tokens& document : random_documents(7, 100, 200, 40)) {
    std::vector<std::int64_t> expected(document.size()), found(document.size());
    std::vector<std::uint8_t> lengths(document.size());
    vocabulary.match(document, expected, lengths);
    for (std::size_t i = 0; i < document.size(); ++i)
      ASSERT_EQ(lengths[i], expected[i] < 0 ? 0 : vocabulary.length(expected[i]));
    ASSERT_EQ(vocabulary.match_of_lengths(document, lengths, found), document.size());
    ASSERT_EQ(found, expected);
    // A length that no f-gram fits is told.
    for (std::size_t i = 5; i < document.size(); ++i) {
      if (lengths[i] == 0 || lengths[i] == 5) continue;
      lengths[i] = static_cast<std::uint8_t>(lengths[i] + 1);  // the match was the longest
      ASSERT_LE(vocabulary.match_of_lengths(document, lengths, found), i);
      break;
    }
  }
}

TEST_F(FgramVocabularyTest, TakesAtMostSixteenBytesAnFgram) {
  // 64K tokens and f-grams of up to 5, spread over the whole range of both.
  FgramVocabularyContents contents;
  contents.token_vocabulary_size = 65'536;
  contents.max_length = 5;
  constexpr std::int64_t size = 400'000;
  std::uint64_t state = 1;
  const auto below = [&](std::int64_t bound) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return static_cast<std::int64_t>(state >> 33U) % bound;
  };
  std::set<std::pair<std::int64_t, std::int32_t>> known;  // prefix, -1 - token or id, and token
  for (std::int64_t id = 0; id < size;) {
    std::int64_t prefix = -1 - below(65'536);
    int length = 2;
    if (id > 100'000 && below(3) > 0) {
      prefix = below(id);
      length = contents.length[static_cast<std::size_t>(prefix)] + 1;
    }
    const std::int64_t token = below(65'536);
    if (length > 5 || !known.insert({prefix, static_cast<std::int32_t>(token)}).second) continue;
    contents.prefix.push_back(prefix);
    contents.last_token.push_back(static_cast<std::uint32_t>(token));
    contents.length.push_back(static_cast<std::uint8_t>(length));
    contents.count.push_back(static_cast<std::uint64_t>(size - id++));
  }
  const FgramVocabulary vocabulary(std::move(contents));
  const double bytes = static_cast<double>(vocabulary.memory_bytes()) / size;
  std::printf("%.2f bytes an f-gram\n", bytes);
  EXPECT_LE(bytes, 16.0);
  EXPECT_GE(bytes, 14.0);  // the index is in it
  for (std::int64_t id = 0; id < size; ++id) {
    const std::int64_t prefix = vocabulary.prefix(id);
    const std::int32_t last = vocabulary.last_token(id);
    ASSERT_EQ(prefix < 0 ? vocabulary.child(vocabulary.first_token(id), last)
                         : vocabulary.child(prefix, last),
              id);
  }
  // Exact: what is not there is not found.
  std::int64_t absent = 0;
  for (std::int64_t i = 0; i < 2'000'000; ++i) {
    const std::int64_t prefix = below(size);
    const auto token = static_cast<std::int32_t>(below(65'536));
    const bool found = vocabulary.child(prefix, token) >= 0;
    ASSERT_EQ(found, known.count({prefix, token}) > 0);
    absent += !found;
  }
  EXPECT_GT(absent, 1'900'000);
}

TEST_F(FgramVocabularyTest, BuilderRefusesWhatCannotWork) {
  const TokenCorpus corpus({shard_});
  FgramBuildOptions options;
  options.size = 10;
  options.memory_bytes = 1000;
  EXPECT_THROW(build_fgram_vocabulary(*self_, corpus, options, folder_ / "bad.h5"), InputError);
  options.memory_bytes = 1'000'000'000;
  options.min_count = 1'000'000;
  EXPECT_THROW(build_fgram_vocabulary(*self_, corpus, options, folder_ / "bad.h5"), InputError);
  options.min_count = 0;
  EXPECT_THROW(build_fgram_vocabulary(*self_, corpus, options, folder_ / "bad.h5"), InputError);
  options.min_count = 5;
  options.max_length = 1;
  EXPECT_THROW(build_fgram_vocabulary(*self_, corpus, options, folder_ / "bad.h5"), InputError);
  options.max_length = 5;
  options.size = 0;
  EXPECT_THROW(build_fgram_vocabulary(*self_, corpus, options, folder_ / "bad.h5"), InputError);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "bad.h5"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "bad.h5.spill"));
}

}  // namespace
}  // namespace scone
