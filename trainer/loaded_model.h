#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/bundle.h"
#include "data/fgram_matcher.h"
#include "model/fgram_model.h"
#include "model/main_model.h"
#include "trainer/embedding_source.h"

namespace scone {

class Backend;
class Communicator;

/// A trained model ready for evaluation or generation: from a checkpoint (f-gram model live) or a
/// bundle (table).
struct LoadedModel {
  std::string kind;            // "checkpoint" or "bundle"
  std::filesystem::path path;  // what was opened
  std::int64_t step = 0;
  ModelConfig config;
  std::int64_t sequence_length = 0;  // of training
  bool attention_across_documents = false;
  std::filesystem::path tokenizer_path;
  std::string tokenizer_fingerprint;
  std::unique_ptr<ParameterSet> main_parameters, fgram_parameters;
  std::unique_ptr<MainModel> main_model;
  std::unique_ptr<RunGrids> grids;        // of the ranks that it was loaded on: data-parallel alone
  std::unique_ptr<FgramMatcher> matcher;  // null for a baseline
  std::unique_ptr<FgramModel> fgram_model;  // null but for a SCONE checkpoint
  std::unique_ptr<EmbeddingSource> source;  // null for a baseline
  std::optional<Bundle> bundle;
};

/// path: run folder (newest valid checkpoint), checkpoints folder, checkpoint, or bundle. Has room
/// for microbatches of `microbatch_sequences` whole contexts. fgrams: another f-gram vocabulary
/// file for a checkpoint's live model; empty: the one it was trained with. rows: how a bundle's
/// table is read; where that is refused, one warning says so. Collective over `world`. Throws
/// InputError.
LoadedModel load_model(const std::filesystem::path& path, Backend& backend,
                       std::int64_t microbatch_sequences, const std::filesystem::path& fgrams,
                       Communicator& world, const RowSourceOptions& rows = {});

}  // namespace scone
