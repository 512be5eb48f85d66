#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/tensor_slice.h"

namespace scone {

/// What the writer of a checkpoint says of it, beside the files and tensors.
struct CheckpointManifest {
  std::int64_t step = 0;
  std::int64_t tokens = 0;  // seen in training
  nlohmann::json model;     // ModelConfig
  nlohmann::json run;       // resolved run configuration
  nlohmann::json data;      // data state, corpus and f-gram vocabulary fingerprints, tokenizer path
  nlohmann::json fgrams;    // {"vocabulary": absolute path, "size", "max_length", "fingerprint"};
                            // null for a baseline
};

/// Where a box of a tensor is stored: row-major fp32 from byte `offset` of a file.
struct StoredBox {
  std::string file;  // "rank-00003.h5"
  std::int64_t offset = 0;
  Box box;
};

/// A tensor of a checkpoint; the boxes hold each index exactly once.
struct StoredTensor {
  Shape shape;
  std::vector<StoredBox> boxes;
};

/// All that manifest.json holds.
struct StoredCheckpoint {
  CheckpointManifest manifest;
  nlohmann::json files = nlohmann::json::object();  // {name: {"bytes", "xxh3"}}
  std::map<std::string, StoredTensor> tensors;
};

/// Text of manifest.json. It is JSON; its last key "xxh3" is the checksum of all bytes before the
/// comma that precedes that key.
std::string manifest_text(const StoredCheckpoint& checkpoint);

/// Adds that last key to a JSON object's text, which ends with its brace.
std::string seal_manifest(std::string json);

/// Parses and checks the text whole: format, version, checksum, each key, boxes inside their files,
/// each tensor's boxes holding each index once. path: for messages. Throws InputError naming path
/// and key.
StoredCheckpoint parse_manifest(const std::filesystem::path& path, const std::string& text);

/// parse_manifest of checkpoint/manifest.json.
StoredCheckpoint load_manifest(const std::filesystem::path& checkpoint);

}  // namespace scone
