// A stream that stops anywhere and goes on with any number of ranks gives the tokens of one that
// did not stop.
#include <gtest/gtest.h>
#include <xxhash.h>

#include <map>
#include <memory>

#include "data/batch_stream.h"
#include "data/fgram_vocabulary_builder.h"
#include "shard_writer.h"

namespace scone {
namespace {

constexpr std::int64_t length = 16;
constexpr std::int64_t batch_sequences = 6;

/// One value that every array of a global batch goes into, in the order of its sequences.
class StreamHash {
 public:
  StreamHash() { XXH3_64bits_reset(state_.get()); }
  void add(const std::vector<Batch>& ranks) {
    const auto add_all = [&](auto member) {
      for (const Batch& batch : ranks) {
        const auto& values = batch.*member;
        XXH3_64bits_update(state_.get(), values.data(), values.size() * sizeof(values[0]));
      }
    };
    add_all(&Batch::tokens);
    add_all(&Batch::targets);
    add_all(&Batch::attention_start);
    add_all(&Batch::match);
  }
  std::uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_{XXH3_createState(),
                                                                         XXH3_freeState};
};

class BatchResumeTest : public testing::TestWithParam<bool> {
 protected:
  BatchResumeTest() {
    write("a", 1, 25 * length + 1);
    write("b", 2, 23 * length + 1);
    const bool mixed = GetParam();
    mixture_ = mixed ? std::make_unique<TokenMixture>(std::vector<TokenMixture::Part>{
                           {corpora_[0].get(), 0.7, "a"}, {corpora_[1].get(), 0.3, "b"}})
                     : std::make_unique<TokenMixture>(*corpora_[0]);
    FgramBuildOptions options;
    options.size = 200;
    options.min_count = 2;
    const auto self = make_self_communicator();
    vocabulary_ = std::make_unique<FgramVocabulary>(build_vocabulary(*self, *corpora_[0], options));
  }
  void write(const std::string& name, std::uint64_t seed, std::int64_t tokens) {
    Documents documents;
    for (const auto& document : random_documents(seed, 100, 40, 60)) {
      if (document.empty() || tokens == 0) continue;
      documents.push_back(document);
      const auto size = std::min<std::int64_t>(tokens, static_cast<std::int64_t>(document.size()));
      documents.back().resize(static_cast<std::size_t>(size));
      tokens -= size;
    }
    ASSERT_EQ(tokens, 0);
    write_shard(folder_ / (name + ".h5"), documents, 60);
    corpora_.push_back(std::make_unique<TokenCorpus>(
        std::vector<std::filesystem::path>{folder_ / (name + ".h5")}));
  }

  /// Adds the next `batches` from `state` on, read by so many ranks, and returns where they end.
  DataState read(DataState state, int ranks, std::int64_t batches, StreamHash& hash) const {
    std::vector<std::unique_ptr<BatchStream>> streams;
    for (int rank = 0; rank < ranks; ++rank) {
      BatchStreamOptions options;
      options.sequence_length = length;
      options.batch_sequences = batch_sequences;
      options.data = {rank, ranks};
      options.seed = 5;
      streams.push_back(
          std::make_unique<BatchStream>(*mixture_, vocabulary_.get(), options, state));
    }
    for (std::int64_t b = 0; b < batches; ++b) {
      std::vector<Batch> all;
      for (const auto& stream : streams) all.push_back(stream->next());
      hash.add(all);
      state = all.front().state_after;
      for (const Batch& batch : all) {
        EXPECT_EQ(batch.state_after.epoch, state.epoch);
        EXPECT_EQ(batch.state_after.sample, state.sample);
      }
    }
    return state;
  }

  TemporaryFolder folder_;
  std::vector<std::unique_ptr<TokenCorpus>> corpora_;
  std::unique_ptr<TokenMixture> mixture_;
  std::unique_ptr<FgramVocabulary> vocabulary_;
};

TEST_P(BatchResumeTest, GoesOnAsIfItHadNotStopped) {
  // An epoch has 25 samples, 4 batches and a sixth; or, of two corpora, 48, 8 batches. So 25
  // batches, or 8, end with an epoch.
  const std::int64_t samples = GetParam() ? 48 : 25;
  const std::int64_t end_of_epoch = GetParam() ? 8 : 25;
  const std::int64_t total = 2 * end_of_epoch + 5;
  StreamHash whole;
  const DataState end = read({}, 1, total, whole);
  EXPECT_EQ(end.epoch, total * batch_sequences / samples);
  EXPECT_EQ(end.sample, total * batch_sequences % samples);
  const std::map<std::string, std::int64_t> stops = {{"at the beginning", 0},
                                                     {"in mid-epoch", 2},
                                                     {"where a batch crosses epochs", 5},
                                                     {"at an epoch's end", end_of_epoch},
                                                     {"after an epoch's end", end_of_epoch + 1},
                                                     {"in a later epoch", end_of_epoch + 4}};
  for (const auto& [name, stop] : stops) {
    for (int before = 1; before <= 3; ++before) {
      for (int after = 1; after <= 3; ++after) {
        StreamHash hash;
        const DataState state = read({}, before, stop, hash);
        EXPECT_TRUE(stop != end_of_epoch || state.sample == 0);
        read(state, after, total - stop, hash);
        EXPECT_EQ(hash.value(), whole.value())
            << "stopped " << name << " on " << before << " ranks, went on with " << after;
      }
    }
  }
  // The hash tells one sequence missing, and the order.
  StreamHash shifted;
  read({0, 1}, 1, total, shifted);
  EXPECT_NE(shifted.value(), whole.value());
}

class BatchUnionTest : public BatchResumeTest {};

TEST_P(BatchUnionTest, UnionOverRanksIsTheCorpusWithoutRepeats) {
  for (int ranks = 1; ranks <= 3; ++ranks) {
    std::map<std::vector<std::int32_t>, int> seen, expected;
    std::vector<std::int32_t> all(static_cast<std::size_t>(corpora_[0]->tokens()));
    corpora_[0]->read(0, all);
    for (std::int64_t s = 0; s < 25; ++s)
      ++expected[{all.begin() + s * length, all.begin() + (s + 1) * length}];
    for (int rank = 0; rank < ranks; ++rank) {
      BatchStreamOptions options;
      options.sequence_length = length;
      options.batch_sequences = 5;  // five batches an epoch
      options.data = {rank, ranks};
      options.seed = 5;
      BatchStream stream(*mixture_, nullptr, options, {3, 0});
      for (int b = 0; b < 5; ++b) {
        const Batch batch = stream.next();
        for (std::int64_t s = 0; s < batch.sequences; ++s)
          ++seen[{batch.tokens.begin() + s * length, batch.tokens.begin() + (s + 1) * length}];
      }
    }
    EXPECT_EQ(seen, expected) << ranks << " ranks";
  }
}

INSTANTIATE_TEST_SUITE_P(OneCorpusAndMixture, BatchResumeTest, testing::Values(false, true));
// Of mixtures: TokenMixtureTest.
INSTANTIATE_TEST_SUITE_P(OneCorpus, BatchUnionTest, testing::Values(false));

}  // namespace
}  // namespace scone
