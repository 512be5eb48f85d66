#include "checkpoint/bake.h"

#include <fmt/format.h>

#include <chrono>
#include <system_error>

#include "checkpoint/bundle.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/export_names.h"
#include "checkpoint/file_checksum.h"
#include "checkpoint/model_source.h"
#include "checkpoint/safetensors.h"
#include "data/tokenizer.h"
#include "model/main_model.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kVocabularyFile = "fgrams.h5";
constexpr const char* kTableFile = "table/rows.bin";

fs::path folder_path(const fs::path& path) {
  const fs::path normal = fs::absolute(path).lexically_normal();
  return normal.filename().empty() ? normal.parent_path() : normal;
}

fs::path with_suffix(fs::path path, const char* suffix) {
  path += suffix;
  return path;
}

void check_target(const fs::path& bundle, bool overwrite) {
  if (!fs::exists(bundle)) return;
  if (!overwrite) {
    throw InputError(fmt::format(
        "{}: exists already; give another --out, or --overwrite to replace it", bundle.string()));
  }
  if (!is_bundle(bundle) && !(fs::is_directory(bundle) && fs::is_empty(bundle))) {
    throw InputError(fmt::format(
        "{}: exists and is no bundle, so it is not replaced; give another --out", bundle.string()));
  }
}

/// Makes `folder` anew. Throws InputError where it cannot be made.
void make_empty_folder(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (!error) fs::create_directories(folder, error);
  if (error) {
    throw InputError(fmt::format("{}: cannot be made: {}; give another --out", folder.string(),
                                 error.message()));
  }
}

/// Creates the table file at its full size, sparse, with its first page.
void create_table(const fs::path& path, const TableLayout& layout) {
  fs::create_directories(path.parent_path());
  write_text_durably(path, table_header(layout));
  fs::resize_file(path, static_cast<std::uintmax_t>(layout.file_bytes()));
}

/// Adds tokenizer, model, f-gram vocabulary and at last bundle.json to the temporary folder.
void write_rest(const fs::path& folder, const ModelSource& source, const Tokenizer& tokenizer,
                const ParameterSet& main_parameters, const FgramVocabulary* vocabulary,
                const TableLayout& layout) {
  const std::string tokenizer_name =
      tokenizer.file().extension() == ".json" ? "tokenizer.json" : "tokenizer.model";
  fs::copy_file(tokenizer.file(), folder / tokenizer_name);
  write_safetensors(folder / kModelFile, exported_views(main_parameters),
                    {{"format", "pt"}, {"producer", "scone"}});
  std::vector<std::string> names = {tokenizer_name, kModelFile};
  nlohmann::json fgrams, table;
  if (vocabulary != nullptr) {
    vocabulary->save(folder / kVocabularyFile);
    names.emplace_back(kVocabularyFile);
    fgrams = {{"file", kVocabularyFile},
              {"size", vocabulary->size()},
              {"max_length", vocabulary->max_length()},
              {"fingerprint", vocabulary->fingerprint()}};
    nlohmann::json file = describe_files(folder, {kTableFile}).at(kTableFile);
    file["name"] = kTableFile;
    table = {{"files", nlohmann::json::array({file})},
             {"dtype", name_of(layout.type)},
             {"width", layout.width},
             {"rows", layout.rows},
             {"record_bytes", layout.bytes_of_record()},
             {"data_offset", kTableDataOffset}};
    sync_path(folder / "table");
  }
  for (const std::string& name : names) sync_path(folder / name);
  const nlohmann::json description = {
      {"format", kBundleFormat},
      {"format_version", kBundleVersion},
      {"model", source.manifest.model},
      {"step", source.manifest.step},
      {"tokens", source.manifest.tokens},
      {"sequence_length",
       manifest_value<std::int64_t>(source.checkpoint, source.manifest.run, "run.sequence_length")},
      {"attention_across_documents", manifest_value<bool>(source.checkpoint, source.manifest.run,
                                                          "run.attention_across_documents")},
      {"tokenizer", {{"file", tokenizer_name}, {"fingerprint", source.tokenizer_fingerprint}}},
      {"fgrams", fgrams},
      {"table", table},
      {"files", describe_files(folder, names)}};
  write_text_durably(folder / "bundle.json", description.dump(2) + "\n");
  sync_path(folder);
}

}  // namespace

BakeResult bake_bundle(const BakeOptions& options, Backend& backend, Communicator& ranks,
                       const BakeProgressReport& report) {
  const auto started = std::chrono::steady_clock::now();
  const bool root = ranks.rank() == 0;
  const fs::path bundle = folder_path(options.bundle);
  const fs::path temporary = with_suffix(bundle, ".tmp");
  BakeResult result;

  std::string found;
  if (root) {
    check_target(bundle, options.overwrite);
    const auto checkpoint = find_checkpoint(options.source, &result.skipped);
    if (!checkpoint) {
      throw InputError(fmt::format(
          "{}: no valid checkpoint; expected a run's folder, its checkpoints folder or one "
          "checkpoint{}{}",
          options.source.string(), result.skipped.empty() ? "" : ": ",
          fmt::join(result.skipped, "; ")));
    }
    found = fs::absolute(*checkpoint).string();
  }
  const ModelSource source = open_model_source(ranks.broadcast_string(found, 0));
  result.checkpoint = source.checkpoint;
  result.step = source.manifest.step;

  const bool has_table = source.config.fgram.layers > 0;
  if (!has_table && !options.vocabulary.empty()) {
    throw InputError(fmt::format("--fgrams {}: {} is a baseline without f-gram model; leave it out",
                                 options.vocabulary.string(), source.checkpoint.string()));
  }
  std::unique_ptr<Tokenizer> tokenizer;
  if (root) tokenizer = open_source_tokenizer(source);
  std::unique_ptr<FgramVocabulary> vocabulary;
  ParameterSet main_parameters(main_parameter_specs(source.config), Device::cpu,
                               /*with_gradients=*/false);
  read_parameters(source.checkpoint, main_parameters);
  TableLayout layout;
  if (has_table) {
    vocabulary =
        std::make_unique<FgramVocabulary>(open_source_vocabulary(source, options.vocabulary));
    layout = {options.type, source.config.main.width, vocabulary->size()};
    result.rows = layout.rows;
    result.width = layout.width;
    result.table_bytes = layout.file_bytes();
  }

  ranks.barrier();  // a rank that cannot read the model ends all before anything is written
  if (root) make_empty_folder(temporary);
  try {
    if (root) {
      const std::int64_t model_bytes = 4 * main_parameters.elements();
      const std::int64_t vocabulary_bytes = 32 * layout.rows;
      require_free_space(temporary, result.table_bytes + model_bytes + vocabulary_bytes);
      if (has_table) create_table(temporary / kTableFile, layout);
    }
    ranks.barrier();
    if (has_table) {
      ParameterSet fgram_parameters(fgram_parameter_specs(source.config), Device::cpu,
                                    /*with_gradients=*/false);
      read_parameters(source.checkpoint, fgram_parameters);
      FgramModel model(source.config, fgram_parameters, whole_token_table(main_parameters), backend,
                       false);
      bake_table(*vocabulary, model, layout, temporary / kTableFile, options.block_nodes, ranks,
                 report);
    }
    if (root) {
      write_rest(temporary, source, *tokenizer, main_parameters, vocabulary.get(), layout);
      publish_folder(temporary, bundle, with_suffix(bundle, ".old.tmp"));
    }
    ranks.barrier();
  } catch (...) {
    std::error_code ignored;
    if (root) fs::remove_all(temporary, ignored);
    throw;
  }
  result.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return result;
}

}  // namespace scone
