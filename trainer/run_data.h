#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/batch_stream.h"
#include "data/fgram_vocabulary.h"
#include "data/token_mixture.h"
#include "data/tokenizer.h"
#include "parallel/process_grid.h"
#include "trainer/run_config.h"

namespace scone {

/// The files a run reads, opened and checked against one another.
struct RunData {
  std::vector<std::unique_ptr<TokenCorpus>> corpora;  // of train
  std::unique_ptr<TokenMixture> train;
  std::unique_ptr<TokenCorpus> validation;      // null: none configured
  std::unique_ptr<FgramVocabulary> vocabulary;  // null: a baseline
  std::unique_ptr<Tokenizer> tokenizer;         // the one that travels with the training shards
  std::vector<std::string> changes;  // shards that are not as they were, and allowed to be
};

/// Opens what the configuration names and fills in model.vocabulary_size and model.fgram.context.
/// Throws InputError where shards and f-gram vocabulary are of different tokenizers, a file is
/// unfit, or shards are not those of the list beside them (unless data.allow_changed).
RunData open_run_data(RunConfig& config);

/// How a run's batches are made on a rank of the main model's grid.
BatchStreamOptions batch_stream_options(const RunConfig& config, const ProcessGrid& main);

}  // namespace scone
