#pragma once

#include <memory>
#include <string>

#include "data/fgram_vocabulary.h"
#include "data/token_corpus.h"
#include "data/tokenizer.h"
#include "trainer/run_config.h"

namespace scone {

/// The files a run reads, opened and checked against one another.
struct RunData {
  std::unique_ptr<TokenCorpus> train;
  std::unique_ptr<TokenCorpus> validation;      // null: none configured
  std::unique_ptr<FgramVocabulary> vocabulary;  // null: a baseline
  std::unique_ptr<Tokenizer> tokenizer;         // the one that travels with the training shards
};

/// Opens what the configuration names and fills in model.vocabulary_size and model.fgram.context.
/// Throws InputError where shards and f-gram vocabulary are of different tokenizers, or a file is
/// unfit.
RunData open_run_data(RunConfig& config);

}  // namespace scone
