#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/fgram_table.h"
#include "data/fgram_vocabulary.h"
#include "model/model_config.h"
#include "model/parameter.h"

namespace scone {

/// An inference artifact: bundle.json, model.safetensors, tokenizer.*, fgrams.h5 (index) and
/// table/.
struct Bundle {
  nlohmann::json description;  // bundle.json
  ModelConfig config;
  std::filesystem::path folder;
  std::unique_ptr<FgramVocabulary> vocabulary;  // null for a baseline's bundle
  std::unique_ptr<FgramTable> table;            // null likewise
  /// Copies model.safetensors into parameters of main_parameter_specs(config).
  void load_main_parameters(ParameterSet& parameters) const;
};

inline constexpr const char* kBundleFormat = "scone-bundle";
inline constexpr int kBundleVersion = 1;

/// True where `path` is a folder with bundle.json.
bool is_bundle(const std::filesystem::path& path);
/// Opens and checks versions, sizes and fingerprints (whole checksums: bundle_problems). Throws
/// InputError.
Bundle open_bundle(const std::filesystem::path& folder);
/// What is wrong with a bundle, every file read whole against its checksum: a line each; empty:
/// valid.
std::vector<std::string> bundle_problems(const std::filesystem::path& folder);

}  // namespace scone
