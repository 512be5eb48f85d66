#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/tensor_slices.h"
#include "model/parameter.h"
#include "model/tensor.h"
#include "parallel/communicator.h"

namespace scone {

/// fp32 tensors by name ("parameters/main.token_embedding", "adam_m/main..", "adam_v/..").
struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// What a checkpoint's manifest.json holds beside its own format version and the files' checksums.
struct CheckpointManifest {
  std::int64_t step = 0;
  std::int64_t tokens = 0;  // seen in training
  nlohmann::json model;     // ModelConfig
  nlohmann::json run;       // resolved run configuration
  nlohmann::json data;      // data state, corpus and f-gram vocabulary fingerprints, tokenizer path
  nlohmann::json fgrams;    // {"vocabulary": absolute path, "size", "max_length", "fingerprint"};
                            // null for a baseline
};

/// Writes folder/step-XXXXXXXX: tensors.h5, then manifest.json, in a temporary folder that is
/// fsynced and renamed. Called on one rank. Then removes the oldest checkpoints beyond `keep` (< 1:
/// keeps all). Stale temporary folders of writers that were killed are removed first; a checkpoint
/// of the same step is replaced. Throws std::runtime_error (too little space: before anything is
/// written); nothing half-written stays.
std::filesystem::path write_checkpoint(const std::filesystem::path& checkpoints,
                                       const CheckpointManifest& manifest,
                                       std::span<const NamedTensor> tensors, int keep);

/// Newest checkpoint whose files have the manifest's sizes and checksums; `skipped` gets a line for
/// each newer one that was not valid. PATH: a run folder, its checkpoints folder, or one
/// checkpoint. nullopt: there is none.
std::optional<std::filesystem::path> find_checkpoint(const std::filesystem::path& path,
                                                     std::vector<std::string>* skipped = nullptr);

/// What is wrong with one checkpoint: a line for each file that is missing, truncated or (where
/// `checksums`) changed, or for an unreadable manifest. Empty: valid.
std::vector<std::string> checkpoint_problems(const std::filesystem::path& checkpoint,
                                             bool checksums = true);

/// True where `path` is a folder with manifest.json.
bool is_checkpoint(const std::filesystem::path& path);

CheckpointManifest read_manifest(const std::filesystem::path& checkpoint);  // throws InputError
/// Reads into the given tensors by name; shapes must agree. Throws InputError naming file and
/// tensor.
void read_tensors(const std::filesystem::path& checkpoint, std::span<const NamedTensor> tensors);
/// Fills every slice's values. Shapes must agree with the global ones. Throws as read_tensors.
void read_slices(const std::filesystem::path& checkpoint, std::span<const TensorSlice> slices);
/// Whole tensors on rank 0, in order of their names, from slices that hold each element once over
/// the ranks (collective); nothing on the others.
std::vector<NamedTensor> gather_tensors(Communicator& communicator,
                                        std::span<const TensorSlice> slices);
/// The same for the values of a parameter set ("parameters/" + spec name).
void read_parameters(const std::filesystem::path& checkpoint, ParameterSet& parameters);

}  // namespace scone
