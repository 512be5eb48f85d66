#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_manifest.h"
#include "checkpoint/tensor_slice.h"
#include "model/parameter.h"
#include "model/tensor.h"

namespace scone {

/// A whole fp32 tensor by name ("parameters/main.token_embedding", "adam_m/main..", "adam_v/..").
struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// A checkpoint is a folder step-XXXXXXXX of slice files (see slice_file.h), one a writing rank, and
// manifest.json (see checkpoint_manifest.h), the last file written. CheckpointWriter makes them.

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
/// Names and global shapes of a checkpoint's tensors. Throws InputError.
std::map<std::string, Shape> tensor_shapes(const std::filesystem::path& checkpoint);

/// Fills the values of each target box from the stored boxes that overlap it, whatever ranks wrote
/// them, reading only what is needed. Not collective. Throws InputError naming file and tensor: no
/// such tensor, another global shape, a file that is missing or ends too early.
void read_slices(const std::filesystem::path& checkpoint, std::span<const TensorSlice> targets);
/// The same for whole tensors.
void read_tensors(const std::filesystem::path& checkpoint, std::span<const NamedTensor> tensors);
/// The same for the values of a parameter set ("parameters/" + spec name), in the host's memory.
void read_parameters(const std::filesystem::path& checkpoint, ParameterSet& parameters);

/// Writes whole tensors as a checkpoint of this process alone, and keeps the `keep` newest (< 1:
/// all). Throws std::runtime_error; nothing half-written stays.
std::filesystem::path write_checkpoint(const std::filesystem::path& checkpoints,
                                       const CheckpointManifest& manifest,
                                       std::span<const NamedTensor> tensors, int keep);

}  // namespace scone
