#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/fgram_matcher.h"
#include "data/token_corpus.h"
#include "data/tokenizer.h"
#include "model/main_model.h"
#include "parallel/process_grid.h"
#include "trainer/embedding_source.h"

namespace scone {

/// Sequences of one rank whose f-grams are looked up together: their trie is shared.
inline constexpr std::int64_t most_lookup_sequences = 64;

struct EvaluationOptions {
  std::int64_t sequence_length = 0;
  std::int64_t microbatch_sequences = 8;  // no more than most_lookup_sequences are computed at once
  std::int64_t tokens = 0;                // of the corpus, from its begin; 0: all
  bool attention_across_documents = false;
};

struct EvaluationResult {
  double loss = 0;           // mean natural-log cross-entropy of a predicted token
  double perplexity = 0;     // exp(loss)
  double bits_per_byte = 0;  // of the predicted tokens' text; 0 where it has no bytes
  std::int64_t tokens = 0;   // predicted
  std::int64_t matched = 0;  // of them predicted from a position that took a row of the source
  std::int64_t bytes = 0;
  double seconds = 0;
};

/// The tokenizer that travels with the corpus. Throws InputError where it is missing or not the one
/// of the shards.
std::unique_ptr<Tokenizer> load_corpus_tokenizer(const TokenCorpus& corpus);

/// Bytes of text of each token id (0 for special tokens).
std::vector<std::int32_t> token_byte_lengths(const Tokenizer& tokenizer);

/// Loss over windows of the corpus in order, shared by the main model's grid of the ranks of
/// `world` (collective). matcher and source: null for a model without f-grams. token_bytes: from
/// token_byte_lengths.
EvaluationResult evaluate(const TokenCorpus& corpus, const FgramMatcher* matcher, MainModel& model,
                          EmbeddingSource* source, std::int64_t width,
                          std::span<const std::int32_t> token_bytes,
                          const EvaluationOptions& options, Communicator& world,
                          const ProcessGrid& grid);

}  // namespace scone
