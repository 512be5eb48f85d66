#include "trainer/run_data.h"

#include <fmt/format.h>

#include "parallel/error.h"
#include "trainer/evaluation.h"

namespace scone {
namespace {

std::unique_ptr<TokenCorpus> open_corpus(const std::vector<std::string>& paths, bool allow_changed,
                                         std::vector<std::string>& changes) {
  auto corpus =
      std::make_unique<TokenCorpus>(std::vector<std::filesystem::path>(paths.begin(), paths.end()),
                                    allow_changed ? ChangedShards::allow : ChangedShards::refuse);
  changes.insert(changes.end(), corpus->changes().begin(), corpus->changes().end());
  return corpus;
}

void open_training_data(const RunConfig& config, RunData& data) {
  const auto& paths = config.data.train;
  const auto open = [&](const std::vector<std::string>& of_one) -> const TokenCorpus& {
    data.corpora.push_back(open_corpus(of_one, config.data.allow_changed, data.changes));
    return *data.corpora.back();
  };
  if (config.data.train_weights.empty()) {
    data.train = std::make_unique<TokenMixture>(open(paths));
    return;
  }
  std::vector<TokenMixture::Part> parts;
  for (std::size_t i = 0; i < paths.size(); ++i)
    parts.push_back({&open({paths[i]}), config.data.train_weights[i], "data.train: " + paths[i]});
  data.train = std::make_unique<TokenMixture>(parts);
}

}  // namespace

RunData open_run_data(RunConfig& config) {
  RunData data;
  open_training_data(config, data);
  config.model.vocabulary_size = data.train->vocabulary_size();
  data.tokenizer = load_corpus_tokenizer(*data.corpora.front());
  if (!config.data.validation.empty()) {
    data.validation = open_corpus(config.data.validation, config.data.allow_changed, data.changes);
    if (data.validation->tokenizer_fingerprint() != data.train->tokenizer_fingerprint())
      throw InputError(
          fmt::format("data.validation ({}) was tokenized with tokenizer {}, data.train ({}) with "
                      "{}; tokenize both with one",
                      config.data.validation.front(), data.validation->tokenizer_fingerprint(),
                      config.data.train.front(), data.train->tokenizer_fingerprint()));
  }
  if (data.validation && data.validation->vocabulary_size() != data.train->vocabulary_size())
    throw InputError(fmt::format(
        "data.validation ({}): its vocabulary has {} tokens, that of data.train {}; one of them is "
        "damaged, tokenize again",
        config.data.validation.front(), data.validation->vocabulary_size(),
        data.train->vocabulary_size()));
  if (data.validation && data.validation->tokens() <= config.trainer.sequence_length)
    throw InputError(fmt::format(
        "data.validation ({}): {} tokens are fewer than one sequence of {} and its last target; "
        "give more text, a "
        "shorter trainer.sequence_length, or no validation data",
        config.data.validation.front(), data.validation->tokens(), config.trainer.sequence_length));
  if (config.model.fgram.layers > 0) {
    data.vocabulary = std::make_unique<FgramVocabulary>(
        config.fgrams.vocabulary, config.fgrams.size, config.fgrams.max_length);
    if (data.vocabulary->tokenizer_fingerprint() != data.train->tokenizer_fingerprint())
      throw InputError(
          fmt::format("fgrams.vocabulary ({}) was counted with tokenizer {}, data.train ({}) has "
                      "{}; run `scone fgrams` on these shards",
                      config.fgrams.vocabulary, data.vocabulary->tokenizer_fingerprint(),
                      config.data.train.front(), data.train->tokenizer_fingerprint()));
    if (data.vocabulary->token_vocabulary_size() != data.train->vocabulary_size())
      throw InputError(
          fmt::format("fgrams.vocabulary ({}) is of a vocabulary of {} tokens, data.train ({}) of "
                      "{}; one of them "
                      "is damaged, make it again",
                      config.fgrams.vocabulary, data.vocabulary->token_vocabulary_size(),
                      config.data.train.front(), data.train->vocabulary_size()));
    config.model.fgram.context = data.vocabulary->max_length();
  }
  return data;
}

BatchStreamOptions batch_stream_options(const RunConfig& config, const ProcessGrid& main) {
  const auto& trainer = config.trainer;
  return {.sequence_length = trainer.sequence_length,
          .batch_sequences = trainer.batch_tokens / trainer.sequence_length,
          .data = {main.data_rank(), main.data_size()},
          .share = {main.tensor_rank(), main.tensor_size()},
          .microbatch_sequences = trainer.microbatch_tokens / trainer.sequence_length,
          .share_fgrams = config.fgrams.share,
          .seed = config.run.seed,
          .shuffle = true,
          .attention_across_documents = config.data.attention_across_documents,
          .prefetch = config.data.prefetch};
}

}  // namespace scone
