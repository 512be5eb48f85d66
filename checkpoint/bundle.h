#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/table/fgram_table.h"
#include "data/fgram_matcher.h"
#include "model/model_config.h"
#include "model/parameter.h"

namespace scone {

/// An inference artifact: bundle.json, model.safetensors, tokenizer.*, and the f-gram table with
/// its index in table/. docs/bundle.md describes every byte.
struct Bundle {
  nlohmann::json description;  // bundle.json
  ModelConfig config;
  std::filesystem::path folder;
  std::unique_ptr<FgramTable> table;      // null for a baseline's bundle
  std::unique_ptr<FgramMatcher> matcher;  // of the table's f-grams; null likewise
  /// Copies model.safetensors into parameters of main_parameter_specs(config), in the host's
  /// memory.
  void load_main_parameters(ParameterSet& host) const;
};

inline constexpr const char* kBundleFormat = "scone-bundle";
inline constexpr int kBundleVersion = 2;
inline constexpr const char* kBundleModelFile = "model.safetensors";
inline constexpr const char* kTableIndexFile = "table/index.bin";

/// bundle.json's "table".
nlohmann::json describe_table(const TableLayout& layout);

/// True where `path` is a folder with bundle.json.
bool is_bundle(const std::filesystem::path& path);
/// Opens and checks versions, sizes and fingerprints (whole checksums: bundle_problems). Where the
/// rows cannot be read as `rows` asks, table->fallback() says why. Throws InputError.
Bundle open_bundle(const std::filesystem::path& folder, const RowSourceOptions& rows = {});
/// What is wrong with a bundle, every file read whole against its checksum: a line each; empty:
/// valid.
std::vector<std::string> bundle_problems(const std::filesystem::path& folder);

}  // namespace scone
