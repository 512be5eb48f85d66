#include "data/token_mixture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <stdexcept>

#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using ::testing::HasSubstr;

/// A corpus of one document, 0, 1, 2, .. (modulo 50).
std::unique_ptr<TokenCorpus> corpus_of(const TemporaryFolder& folder, const std::string& name,
                                       std::int64_t tokens, const std::string& tokenizer = "0123") {
  Documents documents(1);
  for (std::int64_t i = 0; i < tokens; ++i)
    documents[0].push_back(static_cast<std::int32_t>(i % 50));
  write_shard(folder / name, documents, 50, tokenizer);
  return std::make_unique<TokenCorpus>(std::vector<std::filesystem::path>{folder / name});
}

class TokenMixtureTest : public testing::Test {
 protected:
  TokenMixture mixture(double a, double b, double c) const {
    return TokenMixture(
        {{small_.get(), a, "small"}, {middle_.get(), b, "middle"}, {large_.get(), c, "large"}});
  }
  std::string error_of(const std::vector<TokenMixture::Part>& parts) const {
    try {
      const TokenMixture refused(parts);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no InputError";
  }

  TemporaryFolder folder_;
  std::unique_ptr<TokenCorpus> small_ = corpus_of(folder_, "small.h5", 10 * 16 + 1);
  std::unique_ptr<TokenCorpus> middle_ = corpus_of(folder_, "middle.h5", 300 * 16 - 5);
  std::unique_ptr<TokenCorpus> large_ = corpus_of(folder_, "large.h5", 5000 * 16 + 9);
};

TEST_F(TokenMixtureTest, OneCorpusIsPermutedByItself) {
  SampleOrder order(*middle_, 16, 7, true);
  ASSERT_EQ(order.samples_per_epoch(), 300);
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    const SamplePermutation expected(7, epoch, 300);
    for (std::int64_t place = 0; place < 300; ++place) {
      EXPECT_EQ(order.at(epoch, place).corpus, 0);
      EXPECT_EQ(order.at(epoch, place).sample, expected(place));
    }
  }
}

TEST_F(TokenMixtureTest, EachRoundHasTheSharesAndEachCorpusItsOwnEpochs) {
  const TokenMixture mixed = mixture(0.1, 0.25, 0.65);
  EXPECT_EQ(mixed.share(0), 1000);
  EXPECT_EQ(mixed.share(1), 2500);
  EXPECT_EQ(mixed.share(2), 6500);
  SampleOrder order(mixed, 16, 3, true);
  const std::int64_t samples = order.samples_per_epoch();
  ASSERT_EQ(samples, 10 + 300 + 5001);
  const std::int64_t sizes[] = {10, 300, 5001};
  std::vector<std::set<std::int64_t>> drawn(3);  // in the corpus' epoch under way
  std::vector<std::int64_t> counts(3);
  std::int64_t changes = 0, before = -1;
  for (std::int64_t g = 0; g < 3 * TokenMixture::round_samples; ++g) {
    const auto place = order.at(g / samples, g % samples);
    const auto c = static_cast<std::size_t>(place.corpus);
    ASSERT_GE(place.sample, 0);
    ASSERT_LT(place.sample, sizes[c]);
    ASSERT_TRUE(drawn[c].insert(place.sample).second)
        << "sample " << place.sample << " of corpus " << c << " came again at place " << g;
    if (static_cast<std::int64_t>(drawn[c].size()) == sizes[c]) drawn[c].clear();
    ++counts[c];
    changes += place.corpus != before;
    before = place.corpus;
    if ((g + 1) % TokenMixture::round_samples == 0) {
      const std::int64_t rounds = (g + 1) / TokenMixture::round_samples;
      for (std::size_t i = 0; i < 3; ++i)
        EXPECT_EQ(counts[i], rounds * mixed.share(static_cast<std::int64_t>(i)));
    }
  }
  // Drawn independently, neighbours differ with 1 - 0.01 - 0.0625 - 0.4225 of the places.
  EXPECT_NEAR(static_cast<double>(changes) / (3.0 * 10000), 0.505, 0.02);
}

TEST_F(TokenMixtureTest, IsAFunctionOfThePlaceAlone) {
  const TokenMixture mixed = mixture(1, 1, 2);
  SampleOrder forward(mixed, 16, 3, true), backward(mixed, 16, 3, true), other(mixed, 16, 4, true);
  const std::int64_t samples = forward.samples_per_epoch();
  std::vector<std::pair<std::int64_t, std::int64_t>> in_order;
  std::int64_t same = 0;
  for (std::int64_t g = 0; g < 2 * samples; ++g) {
    const auto place = forward.at(g / samples, g % samples);
    in_order.emplace_back(place.corpus, place.sample);
    const auto of_other = other.at(g / samples, g % samples);
    same += of_other.corpus == place.corpus && of_other.sample == place.sample;
  }
  for (std::int64_t g = 2 * samples - 1; g >= 0; --g) {
    const auto place = backward.at(g / samples, g % samples);
    ASSERT_EQ(std::pair(place.corpus, place.sample), in_order[static_cast<std::size_t>(g)]);
  }
  EXPECT_LT(same, samples / 5);  // another seed, another order
}

TEST_F(TokenMixtureTest, FingerprintTellsCorporaAndWeights) {
  EXPECT_EQ(TokenMixture(*small_).fingerprint(), small_->fingerprint());
  std::set<std::string> all = {mixture(1, 1, 2).fingerprint(), mixture(1, 2, 1).fingerprint(),
                               small_->fingerprint()};
  EXPECT_EQ(all.size(), 3u);
  EXPECT_EQ(mixture(1, 1, 2).fingerprint(), mixture(0.25, 0.25, 0.5).fingerprint());
  EXPECT_EQ(mixture(1, 1, 2).tokens(), small_->tokens() + middle_->tokens() + large_->tokens());
  EXPECT_EQ(mixture(1, 1, 2).documents(), 3);
}

TEST_F(TokenMixtureTest, RefusesWhatCannotBeMixed) {
  EXPECT_THAT(error_of({{small_.get(), 1, "a"}, {large_.get(), 0, "b"}}), HasSubstr("b: expected"));
  EXPECT_THAT(error_of({{small_.get(), 1e308, "a"}, {large_.get(), 1e308, "b"}}),
              HasSubstr("a: expected a weight of at most 1"));
  EXPECT_THAT(error_of({{small_.get(), 1e-6, "tiny"}, {large_.get(), 1, "b"}}),
              HasSubstr("tiny: a weight of 1e-06"));
  const auto foreign = corpus_of(folder_, "foreign.h5", 100, "4567");
  EXPECT_THAT(error_of({{small_.get(), 1, "a"}, {foreign.get(), 1, "far"}}),
              HasSubstr("far: tokenized with tokenizer 4567"));
  EXPECT_THROW(TokenMixture(std::vector<TokenMixture::Part>{}), std::invalid_argument);
}

}  // namespace
}  // namespace scone
