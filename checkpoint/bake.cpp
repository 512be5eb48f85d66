#include "checkpoint/bake.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <chrono>
#include <system_error>

#include "checkpoint/bake_journal.h"
#include "checkpoint/bundle.h"
#include "checkpoint/bundle_target.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/export_names.h"
#include "checkpoint/file_checksum.h"
#include "checkpoint/model_source.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/table/table_index.h"
#include "checkpoint/table_files.h"
#include "checkpoint/unfinished_folder.h"
#include "data/tokenizer.h"
#include "model/main_model.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMostIndexBytes = 8;  // of an f-gram, on disk

void write_index(const fs::path& path, const FgramVocabulary& vocabulary) {
  TableIndexHeader header{.rows = vocabulary.size(),
                          .max_length = vocabulary.max_length(),
                          .token_vocabulary_size = vocabulary.token_vocabulary_size(),
                          .fgrams = vocabulary.fingerprint()};
  const auto key_of = [&](std::int64_t id) {
    const std::int64_t prefix = vocabulary.prefix(id);
    return TableKey{prefix < 0 ? -1 - std::int64_t{vocabulary.first_token(id)} : prefix,
                    vocabulary.last_token(id), vocabulary.length(id) <= vocabulary.max_length()};
  };
  for (std::int64_t id = 0; id < header.rows; ++id) header.unused += !key_of(id).used;
  TableIndex::write(path, header, key_of);
}

/// The bundle's description of files whose checksums the ranks shared out. Collective.
nlohmann::json describe_row_files(const fs::path& folder, const TableLayout& layout,
                                  Communicator& ranks) {
  std::vector<std::int64_t> checksums(static_cast<std::size_t>(layout.files()), 0);
  for (std::int64_t file = ranks.rank(); file < layout.files(); file += ranks.size())
    checksums[static_cast<std::size_t>(file)] = static_cast<std::int64_t>(
        std::stoull(file_checksum(folder / table_file_name(file)), nullptr, 16));
  ranks.all_reduce(checksums, ReduceOp::sum);
  nlohmann::json files = nlohmann::json::object();
  for (std::int64_t file = 0; file < layout.files(); ++file)
    files[table_file_name(file)] = {
        {"bytes", layout.bytes_of_file(file)},
        {"xxh3", fmt::format("{:016x}", static_cast<std::uint64_t>(
                                            checksums[static_cast<std::size_t>(file)]))}};
  return files;
}

/// Adds tokenizer, model, index and at last bundle.json to the temporary folder.
void write_rest(const fs::path& folder, const ModelSource& source, const Tokenizer& tokenizer,
                const ParameterSet& main_parameters, const FgramVocabulary* vocabulary,
                const TableLayout& layout, nlohmann::json files) {
  const std::string tokenizer_name =
      tokenizer.file().extension() == ".json" ? "tokenizer.json" : "tokenizer.model";
  fs::copy_file(tokenizer.file(), folder / tokenizer_name, fs::copy_options::overwrite_existing);
  write_safetensors(folder / kBundleModelFile, exported_views(main_parameters),
                    {{"format", "pt"}, {"producer", "scone"}});
  std::vector<std::string> names = {tokenizer_name, kBundleModelFile};
  nlohmann::json fgrams, table;
  if (vocabulary != nullptr) {
    write_index(folder / kTableIndexFile, *vocabulary);
    names.emplace_back(kTableIndexFile);
    fgrams = {{"size", vocabulary->size()},
              {"max_length", vocabulary->max_length()},
              {"fingerprint", vocabulary->fingerprint()}};
    table = describe_table(layout);
    sync_path(folder / "table");
  }
  for (const std::string& name : names) sync_path(folder / name);
  files.update(describe_files(folder, names));
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
      {"files", files}};
  write_text_durably(folder / "bundle.json", description.dump(2) + "\n");
  sync_path(folder);
}

/// What a bake computes: another one of the same goes on with its rows.
nlohmann::json identity_of(const ModelSource& source, const TableLayout& layout,
                           const BakeOptions& options, Device device) {
  return {{"checkpoint", file_checksum(source.checkpoint / "manifest.json")},
          {"table", describe_table(layout)},
          {"fgrams", layout.fgrams},
          {"block_nodes", options.block_nodes},
          {"device", device == Device::cpu ? "cpu" : "cuda"}};
}

/// Bytes of the disk that the files of a folder take.
std::int64_t allocated_bytes(const fs::path& folder) {
  std::int64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    struct stat status {};
    if (entry.is_regular_file() && ::stat(entry.path().c_str(), &status) == 0)
      bytes += std::int64_t{512} * status.st_blocks;
  }
  return bytes;
}

/// Makes the files of the rows, or finds them there. Returns whether something else's were removed.
bool prepare_folder(const UnfinishedFolder& unfinished, const TableLayout& layout,
                    std::int64_t other_bytes, const nlohmann::json& identity) {
  const fs::path& folder = unfinished.path();
  if (BakeJournal::continues(folder, identity)) {
    require_free_space(folder, layout.bytes() + other_bytes - allocated_bytes(folder));
    return false;
  }
  const bool foreign = BakeJournal::exists(folder);
  unfinished.clear();
  require_free_space(folder, layout.bytes() + other_bytes);
  TableFiles::create(folder, layout);
  BakeJournal::begin(folder, identity);
  return foreign;
}

/// Runs the f-gram model of the checkpoint over the vocabulary. Collective.
std::int64_t bake_rows(const ModelSource& source, const FgramVocabulary& vocabulary,
                       const TableLayout& layout, const fs::path& folder,
                       const BakeOptions& options, Backend& backend, Communicator& ranks,
                       const BakeProgressReport& report) {
  ParameterSet main_parameters(main_parameter_specs(source.config), backend.device(),
                               /*with_gradients=*/false);
  ParameterSet fgram_parameters(fgram_parameter_specs(source.config), backend.device(),
                                /*with_gradients=*/false);
  const auto read = [&](ParameterSet& host) { read_parameters(source.checkpoint, host); };
  fill_on_host(main_parameters, backend, read);
  fill_on_host(fgram_parameters, backend, read);
  FgramModel model(source.config, fgram_parameters, whole_token_table(main_parameters), backend,
                   false);
  return bake_table(vocabulary, model, backend, layout, folder, options.block_nodes, ranks, report);
}

/// Puts the finished bundle in its place. Returns a warning where a crash of the machine may undo
/// that. Throws as publish_folder; the bake is then as it was, to go on with.
std::string publish(const UnfinishedFolder& folder, const BundleTarget& target) {
  std::string warning;
  try {
    folder.publish(target.bundle, target.aside);
  } catch (const NotSyncedError& error) {
    warning = error.what();
  }
  BakeJournal::remove(target.bundle);  // not before: until then the rows are the bake's
  return warning;
}

}  // namespace

BakeResult bake_bundle(const BakeOptions& options, Backend& backend, Communicator& ranks,
                       const BakeProgressReport& report) {
  const auto started = std::chrono::steady_clock::now();
  const bool root = ranks.rank() == 0;
  const BundleTarget target(options.bundle);
  const fs::path& temporary = target.temporary;
  BakeResult result;

  std::string found;
  if (root) {
    target.check(options.overwrite);
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
  if (options.vocabulary_size > 0 && options.vocabulary.empty())
    throw InputError("--fgrams-size: goes with --fgrams FILE, of which it takes the first");
  std::unique_ptr<Tokenizer> tokenizer;
  if (root) tokenizer = open_source_tokenizer(source);
  std::unique_ptr<FgramVocabulary> vocabulary;
  ParameterSet main_parameters(main_parameter_specs(source.config), Device::cpu,
                               /*with_gradients=*/false);
  read_parameters(source.checkpoint, main_parameters);
  TableLayout layout;
  if (has_table) {
    vocabulary = std::make_unique<FgramVocabulary>(
        open_source_vocabulary(source, options.vocabulary, options.vocabulary_size));
    layout = make_table_layout(options.type, source.config.main.width, vocabulary->size(),
                               options.file_bytes, vocabulary->fingerprint());
    result.rows = layout.rows;
    result.width = layout.width;
    result.table_bytes = layout.bytes();
  }

  ranks.barrier();  // a rank that cannot read the model ends all before anything is written
  std::optional<UnfinishedFolder> unfinished;  // of the first rank
  if (root) unfinished.emplace(temporary);
  try {
    if (root) {
      target.check(options.overwrite);  // again: another may have ended meanwhile
      const std::int64_t other_bytes =
          4 * main_parameters.elements() + kMostIndexBytes * layout.rows;
      if (has_table) {
        result.started_anew =
            prepare_folder(*unfinished, layout, other_bytes,
                           identity_of(source, layout, options, backend.device()));
      } else {
        unfinished->clear();
        require_free_space(temporary, other_bytes);
      }
    }
    ranks.barrier();
    nlohmann::json row_files = nlohmann::json::object();
    if (has_table) {
      result.rows_kept =
          bake_rows(source, *vocabulary, layout, temporary, options, backend, ranks, report);
      row_files = describe_row_files(temporary, layout, ranks);
    }
    if (root) {
      write_rest(temporary, source, *tokenizer, main_parameters, vocabulary.get(), layout,
                 row_files);
      if (has_table) result.index_bytes = file_bytes(temporary / kTableIndexFile);
      result.warning = publish(*unfinished, target);
    }
    ranks.barrier();
  } catch (const std::exception& error) {
    if (unfinished && fs::exists(temporary) && BakeJournal::finished(temporary).empty())
      unfinished->remove();
    if (!BakeJournal::exists(temporary)) throw;
    const std::string message = fmt::format(
        "{}; the rows that are finished stay in {}, and the same bake goes on from there",
        error.what(), temporary.string());
    if (dynamic_cast<const InputError*>(&error) != nullptr) throw InputError(message);
    throw std::runtime_error(message);
  }
  result.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return result;
}

}  // namespace scone
