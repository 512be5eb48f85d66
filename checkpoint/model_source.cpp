#include "checkpoint/model_source.h"

#include <fmt/format.h>

#include "checkpoint/checkpoint.h"
#include "parallel/json_field.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

}  // namespace

ModelSource open_model_source(const fs::path& checkpoint) {
  ModelSource source;
  source.checkpoint = checkpoint;
  source.manifest = read_manifest(checkpoint);
  source.config =
      read_model_config({source.manifest.model, (checkpoint / "manifest.json").string(), "model"});
  source.tokenizer_fingerprint =
      manifest_value<std::string>(checkpoint, source.manifest.data, "data.tokenizer_fingerprint");
  return source;
}

std::unique_ptr<Tokenizer> open_source_tokenizer(const ModelSource& source) {
  const fs::path path =
      manifest_value<std::string>(source.checkpoint, source.manifest.data, "data.tokenizer");
  auto tokenizer = load_tokenizer(path);
  if (tokenizer->fingerprint() != source.tokenizer_fingerprint) {
    throw InputError(fmt::format(
        "{}: expected the tokenizer {} that {} was trained with, found {}; put the original back",
        tokenizer->file().string(), source.tokenizer_fingerprint, source.checkpoint.string(),
        tokenizer->fingerprint()));
  }
  return tokenizer;
}

FgramVocabulary open_source_vocabulary(const ModelSource& source, const fs::path& chosen,
                                       std::int64_t size) {
  const auto context = static_cast<int>(source.config.fgram.context);
  if (chosen.empty()) {
    const nlohmann::json& fgrams = source.manifest.fgrams;
    const fs::path path =
        manifest_value<std::string>(source.checkpoint, fgrams, "fgrams.vocabulary");
    FgramVocabulary vocabulary(
        path, manifest_value<std::int64_t>(source.checkpoint, fgrams, "fgrams.size"),
        manifest_value<int>(source.checkpoint, fgrams, "fgrams.max_length"));
    const auto expected =
        manifest_value<std::string>(source.checkpoint, fgrams, "fgrams.fingerprint");
    if (vocabulary.fingerprint() != expected) {
      throw InputError(fmt::format(
          "{}: expected the f-gram vocabulary {} that {} was trained with, found {}; give the one "
          "to bake with --fgrams",
          path.string(), expected, source.checkpoint.string(), vocabulary.fingerprint()));
    }
    return vocabulary;
  }
  FgramVocabulary vocabulary(chosen, size, context);
  if (vocabulary.token_vocabulary_size() != source.config.vocabulary_size) {
    throw InputError(fmt::format(
        "{}: its f-grams are of a vocabulary of {} tokens, the model's has {}; make the file again",
        chosen.string(), vocabulary.token_vocabulary_size(), source.config.vocabulary_size));
  }
  if (vocabulary.tokenizer_fingerprint() != source.tokenizer_fingerprint) {
    throw InputError(fmt::format(
        "{}: its f-grams are of the tokenizer {}, the model's is {}; make the vocabulary from "
        "shards of the model's tokenizer",
        chosen.string(), vocabulary.tokenizer_fingerprint(), source.tokenizer_fingerprint));
  }
  return vocabulary;
}

}  // namespace scone
