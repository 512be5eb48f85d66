#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <string>

#include "checkpoint/checkpoint_manifest.h"
#include "data/fgram_vocabulary.h"
#include "data/tokenizer.h"
#include "model/model_config.h"
#include "parallel/error.h"

namespace scone {

/// What a bundle or an export is made of: a checkpoint whose manifest is checked.
struct ModelSource {
  std::filesystem::path checkpoint;
  CheckpointManifest manifest;
  ModelConfig config;
  std::string tokenizer_fingerprint;
};

/// Reads and checks a checkpoint's manifest. Throws InputError.
ModelSource open_model_source(const std::filesystem::path& checkpoint);

/// The tokenizer that the model was trained with. Throws InputError: moved or exchanged.
std::unique_ptr<Tokenizer> open_source_tokenizer(const ModelSource& source);

/// The f-grams that the model was trained with, or the first `size` (0: all) of another file of the
/// same tokenizer. Throws InputError: exchanged, too few, or of another tokenizer.
FgramVocabulary open_source_vocabulary(const ModelSource& source,
                                       const std::filesystem::path& chosen = {},
                                       std::int64_t size = 0);

/// A key of a section of manifest.json ("data.tokenizer" of its data). Throws InputError with the
/// file and the key where it is missing or ill-typed.
template <class T>
T manifest_value(const std::filesystem::path& checkpoint, const nlohmann::json& section,
                 const std::string& dotted_key) {
  try {
    return section.at(dotted_key.substr(dotted_key.find('.') + 1)).get<T>();
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: key \"{}\": {}", (checkpoint / "manifest.json").string(),
                                 dotted_key, error.what()));
  }
}

}  // namespace scone
