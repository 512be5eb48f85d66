#include "data/batch_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>

#include "data/fgram_vocabulary_builder.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using Tokens = std::vector<std::int32_t>;
constexpr std::int64_t length = 16;

class BatchStreamTest : public testing::Test {
 protected:
  BatchStreamTest() {
    const Documents documents = random_documents(3, 60, 45, 50);
    for (std::size_t d = 0; d < documents.size(); ++d) {
      for (std::size_t i = 0; i < documents[d].size(); ++i) {
        tokens_.push_back(documents[d][i]);
        document_.push_back(d);
      }
    }
    write_shard(folder_ / "a.h5", Documents(documents.begin(), documents.begin() + 25), 50);
    write_shard(folder_ / "b.h5", Documents(documents.begin() + 25, documents.end()), 50);
    corpus_ = std::make_unique<TokenCorpus>(std::vector<std::filesystem::path>{folder_.path()});
    const auto self = make_self_communicator();
    FgramBuildOptions options;
    options.size = 200;
    options.min_count = 2;
    vocabulary_ = std::make_unique<FgramVocabulary>(build_vocabulary(*self, *corpus_, options));
    samples_ = (static_cast<std::int64_t>(tokens_.size()) - 1 + length - 1) / length;
  }

  BatchStreamOptions options(std::int64_t batch_sequences = 7) const {
    BatchStreamOptions result;
    result.sequence_length = length;
    result.batch_sequences = batch_sequences;
    result.seed = 11;
    return result;
  }
  /// What sample `sample` must look like, said naively.
  void expect_sample(std::int64_t sample, const Batch& batch, std::int64_t sequence,
                     bool across) const {
    Tokens window;
    for (std::int64_t i = 0; i < length; ++i) {
      const auto at = static_cast<std::size_t>(sequence * length + i);
      const auto position = static_cast<std::size_t>(sample * length + i);
      if (position + 1 >= tokens_.size()) {
        EXPECT_EQ(batch.tokens[at], 0);
        EXPECT_EQ(batch.targets[at], -1);
        EXPECT_EQ(batch.match[at], -1);
        EXPECT_EQ(batch.row_of_position[at], -1);
        continue;
      }
      EXPECT_EQ(batch.tokens[at], tokens_[position]);
      const bool same = document_[position] == document_[position + 1];
      EXPECT_EQ(batch.targets[at], same || across ? tokens_[position + 1] : -1);
      std::int64_t start = i;
      while (start > 0 && document_[static_cast<std::size_t>(sample * length + start - 1)] ==
                              document_[position]) {
        --start;
      }
      EXPECT_EQ(batch.attention_start[at], across ? 0 : start);
      std::int64_t longest = -1;
      for (std::int64_t j = start; j < i && longest < 0; ++j) {
        const auto first = tokens_.begin() + sample * length;
        longest = find(Tokens(first + j, first + i + 1));
      }
      EXPECT_EQ(batch.match[at], longest);
      EXPECT_EQ(batch.row_of_position[at] < 0, longest < 0);
      if (longest >= 0) {
        EXPECT_EQ(batch.fgrams.at(static_cast<std::size_t>(batch.row_of_position[at])), longest);
      }
    }
  }
  std::int64_t find(const Tokens& fgram) const {
    std::int64_t id = vocabulary_->child(fgram[0], fgram[1]);
    for (std::size_t i = 2; i < fgram.size() && id >= 0; ++i) id = vocabulary_->child(id, fgram[i]);
    return id;
  }

  TemporaryFolder folder_;
  Tokens tokens_;
  std::vector<std::size_t> document_;  // of each token
  std::unique_ptr<TokenCorpus> corpus_;
  std::unique_ptr<FgramVocabulary> vocabulary_;
  std::int64_t samples_ = 0;
};

Tokens sequence_of(const Batch& batch, std::int64_t sequence) {
  return Tokens(batch.tokens.begin() + sequence * batch.length,
                batch.tokens.begin() + (sequence + 1) * batch.length);
}

TEST_F(BatchStreamTest, SequencesKeepDocumentsApart) {
  ASSERT_NE((static_cast<std::int64_t>(tokens_.size()) - 1) % length,
            0);  // the last window is short
  for (const bool across : {false, true}) {
    BatchStreamOptions in_order = options();
    in_order.shuffle = false;
    in_order.attention_across_documents = across;
    BatchStream stream(*corpus_, vocabulary_.get(), in_order);
    EXPECT_EQ(stream.samples_per_epoch(), samples_);
    std::int64_t sample = 0;
    std::int64_t matched = 0;
    while (sample < 2 * samples_) {
      const Batch batch = stream.next();
      EXPECT_TRUE(std::is_sorted(batch.fgrams.begin(), batch.fgrams.end()));
      EXPECT_EQ(std::adjacent_find(batch.fgrams.begin(), batch.fgrams.end()), batch.fgrams.end());
      for (std::int64_t s = 0; s < batch.sequences; ++s, ++sample) {
        expect_sample(sample % samples_, batch, s, across);
      }
      EXPECT_EQ(batch.local_targets, std::count_if(batch.targets.begin(), batch.targets.end(),
                                                   [](std::int32_t t) { return t >= 0; }));
      EXPECT_EQ(batch.state_after.epoch, sample / samples_);
      EXPECT_EQ(batch.state_after.sample, sample % samples_);
      matched += std::count_if(batch.match.begin(), batch.match.end(),
                               [](std::int64_t id) { return id >= 0; });
    }
    EXPECT_GT(matched, 50);
  }
}

TEST_F(BatchStreamTest, EverySampleOnceAnEpochInAnOrderOfItsOwn) {
  std::multiset<Tokens> expected;
  for (std::int64_t s = 0; s < samples_; ++s) {
    Tokens window(static_cast<std::size_t>(length), 0);
    for (std::int64_t i = 0; i < length; ++i) {
      const auto position = static_cast<std::size_t>(s * length + i);
      if (position + 1 < tokens_.size()) window[static_cast<std::size_t>(i)] = tokens_[position];
    }
    expected.insert(window);
  }
  BatchStream stream(*corpus_, vocabulary_.get(), options());
  std::vector<Tokens> drawn;
  while (drawn.size() < static_cast<std::size_t>(3 * samples_)) {
    const Batch batch = stream.next();
    for (std::int64_t s = 0; s < batch.sequences; ++s) drawn.push_back(sequence_of(batch, s));
  }
  const auto epoch = [&](int e) {
    return std::vector<Tokens>(drawn.begin() + e * samples_, drawn.begin() + (e + 1) * samples_);
  };
  for (int e = 0; e < 3; ++e) {
    const auto own = epoch(e);
    EXPECT_EQ(std::multiset<Tokens>(own.begin(), own.end()), expected);
  }
  EXPECT_NE(epoch(0), epoch(1));
}

TEST_F(BatchStreamTest, ReadAheadAndMemoryUsedAgainChangeNothing) {
  BatchStream plain(*corpus_, vocabulary_.get(), options());
  BatchStreamOptions ahead = options();
  ahead.read_ahead = 9;
  ahead.prefetch = 4;
  BatchStream other(*corpus_, vocabulary_.get(), ahead);
  BatchStreamOptions none = options();
  none.read_ahead = 0;
  none.prefetch = 1;
  BatchStream bare(*corpus_, vocabulary_.get(), none);
  Batch again, from_bare;
  for (int b = 0; b < 30; ++b) {
    const Batch expected = plain.next();
    other.next(again);
    bare.next(from_bare);
    for (const Batch* batch : {&again, &from_bare}) {
      EXPECT_EQ(batch->tokens, expected.tokens);
      EXPECT_EQ(batch->targets, expected.targets);
      EXPECT_EQ(batch->attention_start, expected.attention_start);
      EXPECT_EQ(batch->match, expected.match);
      EXPECT_EQ(batch->fgrams, expected.fgrams);
      EXPECT_EQ(batch->row_of_position, expected.row_of_position);
      EXPECT_EQ(batch->local_targets, expected.local_targets);
      EXPECT_EQ(batch->state_after.sample, expected.state_after.sample);
    }
  }
}

TEST_F(BatchStreamTest, UnionOverRanksIsTheGlobalBatch) {
  BatchStream whole(*corpus_, vocabulary_.get(), options());
  std::vector<Batch> expected;
  for (int b = 0; b < 12; ++b) expected.push_back(whole.next());
  for (int ranks = 2; ranks <= 3; ++ranks) {
    std::vector<std::unique_ptr<BatchStream>> streams;
    for (int rank = 0; rank < ranks; ++rank) {
      BatchStreamOptions own = options();
      own.data = {rank, ranks};
      streams.push_back(std::make_unique<BatchStream>(*corpus_, vocabulary_.get(), own));
    }
    for (const Batch& global : expected) {
      Batch joined;
      for (const auto& stream : streams) {
        const Batch part = stream->next();
        EXPECT_TRUE(part.sequences == 7 / ranks || part.sequences == 7 / ranks + 1);
        joined.tokens.insert(joined.tokens.end(), part.tokens.begin(), part.tokens.end());
        joined.targets.insert(joined.targets.end(), part.targets.begin(), part.targets.end());
        joined.match.insert(joined.match.end(), part.match.begin(), part.match.end());
        joined.local_targets += part.local_targets;
        EXPECT_EQ(part.state_after.epoch, global.state_after.epoch);
        EXPECT_EQ(part.state_after.sample, global.state_after.sample);
      }
      EXPECT_EQ(joined.tokens, global.tokens);
      EXPECT_EQ(joined.targets, global.targets);
      EXPECT_EQ(joined.match, global.match);
      EXPECT_EQ(joined.local_targets, global.local_targets);
    }
  }
}

TEST_F(BatchStreamTest, ResumesFromStateAfter) {
  BatchStream stream(*corpus_, vocabulary_.get(), options());
  std::vector<Batch> all;
  for (int b = 0; b < 20; ++b) all.push_back(stream.next());
  ASSERT_GT(all.back().state_after.epoch, 0);
  for (std::size_t b = 0; b + 1 < all.size(); ++b) {
    BatchStream resumed(*corpus_, vocabulary_.get(), options(), all[b].state_after);
    const Batch next = resumed.next();
    EXPECT_EQ(next.tokens, all[b + 1].tokens);
    EXPECT_EQ(next.match, all[b + 1].match);
    EXPECT_EQ(next.state_after.sample, all[b + 1].state_after.sample);
  }
}

TEST_F(BatchStreamTest, BatchLargerThanAnEpoch) {
  BatchStream stream(*corpus_, nullptr, options(2 * samples_ + 3));
  const Batch batch = stream.next();
  EXPECT_EQ(batch.state_after.epoch, 2);
  EXPECT_EQ(batch.state_after.sample, 3);
  EXPECT_TRUE(batch.fgrams.empty());
}

TEST_F(BatchStreamTest, RefusesWhatCannotWork) {
  BatchStreamOptions bad = options();
  bad.sequence_length = static_cast<std::int64_t>(tokens_.size());
  EXPECT_THROW(BatchStream(*corpus_, nullptr, bad), InputError);
  bad.sequence_length -= 1;
  EXPECT_NO_THROW(BatchStream(*corpus_, nullptr, bad));
  bad = options(2);
  bad.data = {0, 3};
  EXPECT_THROW(BatchStream(*corpus_, nullptr, bad), InputError);
  EXPECT_THROW(BatchStream(*corpus_, nullptr, options(), {0, samples_ + 1}), InputError);
}

TEST_F(BatchStreamTest, RefusesAnotherTokenizersFgrams) {
  TemporaryFolder other;
  write_shard(other / "x.h5", {Tokens(100, 1)}, 50, "4567");
  const TokenCorpus corpus({other.path()});
  EXPECT_THROW(BatchStream(corpus, vocabulary_.get(), options()), InputError);
}

}  // namespace
}  // namespace scone
