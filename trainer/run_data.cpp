#include "trainer/run_data.h"

#include <fmt/format.h>

#include "parallel/error.h"

namespace scone {
namespace {

std::unique_ptr<TokenCorpus> open_corpus(const std::vector<std::string>& paths) {
  return std::make_unique<TokenCorpus>(
      std::vector<std::filesystem::path>(paths.begin(), paths.end()));
}

}  // namespace

RunData open_run_data(RunConfig& config) {
  RunData data;
  data.train = open_corpus(config.data.train);
  config.model.vocabulary_size = data.train->vocabulary_size();
  if (!config.data.validation.empty()) {
    data.validation = open_corpus(config.data.validation);
    if (data.validation->tokenizer_fingerprint() != data.train->tokenizer_fingerprint())
      throw InputError(
          fmt::format("data.validation ({}) was tokenized with tokenizer {}, data.train ({}) with "
                      "{}; tokenize both with one",
                      config.data.validation.front(), data.validation->tokenizer_fingerprint(),
                      config.data.train.front(), data.train->tokenizer_fingerprint()));
  }
  if (config.model.fgram.layers > 0) {
    data.vocabulary = std::make_unique<FgramVocabulary>(
        config.fgrams.vocabulary, config.fgrams.size, config.fgrams.max_length);
    if (data.vocabulary->tokenizer_fingerprint() != data.train->tokenizer_fingerprint())
      throw InputError(
          fmt::format("fgrams.vocabulary ({}) was counted with tokenizer {}, data.train ({}) has "
                      "{}; run `scone fgrams` on these shards",
                      config.fgrams.vocabulary, data.vocabulary->tokenizer_fingerprint(),
                      config.data.train.front(), data.train->tokenizer_fingerprint()));
    config.model.fgram.context = data.vocabulary->max_length();
  }
  return data;
}

}  // namespace scone
