#pragma once

#include <cstdint>
#include <vector>

#include "data/fgram_vocabulary.h"
#include "data/token_corpus.h"
#include "parallel/communicator.h"

namespace scone {

/// How a corpus' positions are matched, each document whole.
struct FgramCoverage {
  std::int64_t positions = 0;
  std::vector<std::int64_t>
      matched;  // [K + 1]: positions by length of their longest match; [0]: none
  /// f-gram tokens a position when every match runs alone: the sum of match lengths over positions.
  double fgram_tokens_per_position() const;
  /// The same with every match padded to K.
  double padded_tokens_per_position() const;
};

/// Of the corpus' first `tokens` positions; 0: all. Collective: ranks take documents. max_length of
/// `matcher` is K.
FgramCoverage measure_coverage(Communicator& communicator, const TokenCorpus& corpus,
                               const FgramMatcher& matcher, std::int64_t tokens = 0);

/// The trie of batches of one size: distinct nodes, roots included, a token.
struct FgramSharing {
  std::int64_t batch_tokens = 0;
  std::int64_t batches = 0;  // measured; 0 where the corpus holds less than one
  double nodes_per_token = 0;
  double fgrams_per_token = 0;  // distinct longest matches a token
};

/// Draws up to `batches` batches as training does (shuffled sequences of sequence_length) from one
/// epoch. Not collective.
FgramSharing measure_sharing(const TokenCorpus& corpus, const FgramVocabulary& vocabulary,
                             std::int64_t batch_tokens, std::int64_t sequence_length,
                             std::int64_t batches, std::uint64_t seed);

}  // namespace scone
