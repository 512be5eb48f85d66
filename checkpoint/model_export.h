#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace scone {

/// What export_model made.
struct ExportResult {
  std::filesystem::path checkpoint;  // that was taken
  std::vector<std::string> skipped;  // newer ones that were not valid
  std::int64_t step = 0;
  std::int64_t parameters = 0;  // of both models
};

/// Writes a checkpoint's models for other programs: model.safetensors and, where there is an f-gram
/// model, fgram_model.safetensors, fp32 under the names of export_names.h; config.json; and copies
/// of the tokenizer and the f-gram vocabulary. source: run folder (its newest valid checkpoint),
/// checkpoints folder or checkpoint. folder must not exist. Called on one rank. Throws InputError
/// for a bad source, std::runtime_error where writing fails; nothing half-written stays.
ExportResult export_model(const std::filesystem::path& source, const std::filesystem::path& folder);

/// True where `path` is a folder of export_model.
bool is_export(const std::filesystem::path& path);
/// What is wrong with it, every file read whole against its checksum: a line each; empty: valid.
std::vector<std::string> export_problems(const std::filesystem::path& folder);

/// The inverse: makes RUN/checkpoints/step-00000000 of an exported folder, with which `scone train`
/// with run.folder=RUN begins anew: its weights, zero moments, no step done. The tokenizer and the
/// f-gram vocabulary are those in `exported`, which must stay. Returns the checkpoint's path.
/// Throws InputError: not an export, or changed since; a run that has checkpoints already.
std::filesystem::path import_model(const std::filesystem::path& exported,
                                   const std::filesystem::path& run);

}  // namespace scone
