#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/sample_permutation.h"
#include "data/token_corpus.h"

namespace scone {

/// One corpus, or several that are drawn from by weight. Copies refer to the same corpora.
class TokenMixture {
 public:
  /// Samples of a mixture are drawn in rounds of this many, in which each corpus has its share
  /// exactly.
  static constexpr std::int64_t round_samples = 10000;

  struct Part {
    const TokenCorpus* corpus = nullptr;
    double weight = 1;  // relative, > 0
    std::string name;   // for messages: its path
  };

  /// One corpus, each sample once an epoch. Not explicit: a corpus is a mixture of one.
  TokenMixture(const TokenCorpus& corpus);  // NOLINT(google-explicit-constructor)
  /// The corpora outlive this. Throws InputError where they are of different tokenizers, or a
  /// weight is too small for a sample in each round.
  explicit TokenMixture(const std::vector<Part>& parts);

  std::int64_t size() const { return static_cast<std::int64_t>(parts_.size()); }
  const TokenCorpus& corpus(std::int64_t index) const {
    return *parts_[static_cast<std::size_t>(index)].corpus;
  }
  /// Samples of a corpus in each round; they sum to round_samples.
  std::int64_t share(std::int64_t index) const { return shares_[static_cast<std::size_t>(index)]; }

  std::int64_t tokens() const;     // of all corpora
  std::int64_t documents() const;  // of all corpora
  std::int64_t vocabulary_size() const { return parts_.front().corpus->vocabulary_size(); }
  const std::string& tokenizer_fingerprint() const {
    return parts_.front().corpus->tokenizer_fingerprint();
  }
  /// That of the corpus where it is one; else 16 hex digits over all of theirs and their shares.
  std::string fingerprint() const;

 private:
  std::vector<Part> parts_;
  std::vector<std::int64_t> shares_;
};

/// The order in which a mixture's samples are drawn: a pure function of (seed, epoch, place in the
/// epoch), without memory of what was drawn before. Sample s of a corpus is the window of
/// sequence_length tokens, and the next as its last target, from s * sequence_length; the last
/// window may be short.
///
/// One corpus: an epoch holds every sample once, in the order of a counter-based permutation by
/// (seed, epoch). Several: place g since the beginning lies in round g / round_samples; a
/// permutation by (seed, round) deals the round's places out by share, which says how often each
/// corpus was drawn before g, and with that the corpus' own epoch and the place in it, as for one
/// corpus. So a corpus is passed through whole before any of its samples comes again, at the pace
/// that its weight gives it; an epoch of the mixture is as many samples as all corpora hold.
class SampleOrder {
 public:
  struct Place {
    std::int64_t corpus = 0, sample = 0;
  };

  /// shuffle: false leaves the samples of each corpus in their order.
  SampleOrder(const TokenMixture& mixture, std::int64_t sequence_length, std::uint64_t seed,
              bool shuffle);

  std::int64_t samples_per_epoch() const { return samples_; }
  /// place: 0..samples_per_epoch() - 1.
  Place at(std::int64_t epoch, std::int64_t place);

 private:
  struct Corpus {
    std::int64_t samples = 0, share = 0;
    std::int64_t epoch = -1;  // of `order`
    SamplePermutation order{0, 0, 1};
  };
  std::int64_t shuffled(std::int64_t corpus, std::int64_t epoch, std::int64_t place);

  std::uint64_t seed_;
  bool shuffle_;
  std::int64_t samples_ = 0;
  std::vector<Corpus> corpora_;
  struct Draw {
    std::int32_t corpus, before;  // and how often it was drawn before in the round
  };
  void deal_round(std::int64_t round);
  std::int64_t round_ = -1;  // of `draws_`
  std::vector<Draw> draws_;  // by place in the round
};

}  // namespace scone
