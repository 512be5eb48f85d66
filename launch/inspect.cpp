#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/bundle.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/file_checksum.h"
#include "checkpoint/model_export.h"
#include "checkpoint/safetensors.h"
#include "data/fgram_vocabulary.h"
#include "data/hdf5_file.h"
#include "data/match_annotations.h"
#include "data/shard_list.h"
#include "data/token_corpus.h"
#include "data/tokenizer.h"
#include "launch/command.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

/// What was found: lines for people, an object for scripts.
struct Report {
  std::vector<std::string> lines;
  nlohmann::json json;

  void add(std::string line) { lines.push_back(std::move(line)); }
};

/// Prints names as a tree: parts between '/' and '.' that a name shares with the one before it are
/// left out.
class TensorTree {
 public:
  explicit TensorTree(Report& report) : report_(report) {}

  void add(const std::string& name, const std::string& type, const Shape& shape, double norm) {
    std::vector<std::string> parts(1);
    for (const char c : name) {
      if (c == '/' || c == '.') {
        parts.emplace_back();
      } else {
        parts.back() += c;
      }
    }
    std::size_t shared = 0;
    while (shared + 1 < parts.size() && shared + 1 < last_.size() &&
           parts[shared] == last_[shared]) {
      ++shared;
    }
    for (std::size_t depth = shared; depth + 1 < parts.size(); ++depth) {
      report_.add(fmt::format("  {:{}}{}", "", 2 * depth, parts[depth]));
    }
    const std::string leaf = fmt::format("  {:{}}{}", "", 2 * (parts.size() - 1), parts.back());
    report_.add(fmt::format("{:<40} {:<5} {:<18} norm {:.6g}", leaf, type,
                            fmt::format("[{}]", fmt::join(shape, ", ")), norm));
    report_.json["tensors"].push_back(
        {{"name", name}, {"dtype", type}, {"shape", shape}, {"norm", norm}});
    last_ = std::move(parts);
  }

 private:
  Report& report_;
  std::vector<std::string> last_;
};

double norm_of(const Tensor& tensor) {
  double sum = 0;
  for (const float value : tensor.span<float>()) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

void inspect_safetensors(const fs::path& path, Report& report) {
  const SafetensorsFile file(path);
  report.json["kind"] = "safetensors";
  report.add(fmt::format("{}: safetensors, {} tensors", path.string(), file.entries().size()));
  for (const auto& [key, value] : file.metadata()) report.add(fmt::format("  {}: {}", key, value));
  std::vector<SafetensorsEntry> entries = file.entries();
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  TensorTree tree(report);
  for (const SafetensorsEntry& entry : entries) {
    double norm = std::nan("");
    if (entry.dtype == "F32" || entry.dtype == "BF16" || entry.dtype == "F16") {
      const Tensor tensor = Tensor::zeros(entry.shape);
      file.read(entry.name, tensor);
      norm = norm_of(tensor);
    }
    tree.add(entry.name, entry.dtype, entry.shape, norm);
  }
}

/// One slice file by itself: the boxes of one rank.
void inspect_slice_file(const fs::path& path, Report& report) {
  const Hdf5File file = Hdf5File::open(path);
  TensorTree tree(report);
  for (const std::string& name : file.dataset_names()) {
    const Tensor tensor = Tensor::zeros(file.dataset_shape(name));
    file.read(name, H5T_NATIVE_FLOAT, tensor.data<float>());
    tree.add(name, "fp32", tensor.shape(), norm_of(tensor));
  }
}

/// The whole tensors of a checkpoint, whatever ranks wrote them, some at a time.
void inspect_tensors_of(const fs::path& checkpoint, Report& report) {
  constexpr std::int64_t kElementsAtOnce = std::int64_t{1} << 26;
  struct Group {
    std::int64_t tensors = 0, elements = 0;
    double squares = 0;
  };
  std::map<std::string, Group> groups;  // "parameters/main", "adam_m/main", ..
  TensorTree tree(report);
  std::vector<NamedTensor> some;
  std::int64_t elements = 0;
  const auto read_some = [&] {
    read_tensors(checkpoint, some);
    for (const NamedTensor& named : some) {
      const double norm = norm_of(named.tensor);
      tree.add(named.name, "fp32", named.tensor.shape(), norm);
      Group& group = groups[named.name.substr(0, named.name.find('.'))];
      ++group.tensors;
      group.elements += named.tensor.elements();
      group.squares += norm * norm;
    }
    some.clear();
    elements = 0;
  };
  for (const auto& [name, shape] : tensor_shapes(checkpoint)) {
    some.push_back({name, Tensor::zeros(shape)});
    elements += some.back().tensor.elements();
    if (elements >= kElementsAtOnce) read_some();
  }
  read_some();
  for (const auto& [name, group] : groups) {
    report.add(fmt::format("  {}: {} tensors, {} elements, norm {:.6g}", name, group.tensors,
                           group.elements, std::sqrt(group.squares)));
    report.json["groups"][name] = {{"tensors", group.tensors},
                                   {"elements", group.elements},
                                   {"norm", std::sqrt(group.squares)}};
  }
}

/// Reads a shard whole: every id against the vocabulary, every byte against its checksum.
void inspect_shard(const fs::path& path, Report& report) {
  const TokenCorpus corpus({path});
  const ShardInfo& info = corpus.shards().front();
  std::vector<std::int32_t> piece(std::size_t{1} << 20);
  for (std::int64_t first = 0; first < info.tokens;) {
    const auto count = std::min(static_cast<std::int64_t>(piece.size()), info.tokens - first);
    corpus.read(first, std::span(piece).first(static_cast<std::size_t>(count)));
    first += count;
  }
  StreamingChecksum checksum;
  {
    const Hdf5File file = Hdf5File::open(path);
    const std::int64_t token_bytes = info.vocabulary_size <= 65536 ? 2 : 4;
    checksum.add_file(path, file.dataset_offset("/tokens"), info.tokens * token_bytes);
    checksum.add_file(path, file.dataset_offset("/document_offsets"), (info.documents + 1) * 8);
  }
  if (checksum.hex() != info.checksum) {
    throw InputError(
        fmt::format("{}: expected checksum {}, found {}: the tokens were changed; "
                    "tokenize again",
                    path.string(), info.checksum, checksum.hex()));
  }
  report.json["shards"].push_back({{"path", path.string()},
                                   {"tokens", info.tokens},
                                   {"documents", info.documents},
                                   {"text_bytes", info.text_bytes},
                                   {"checksum", info.checksum}});
  report.add(fmt::format(
      "{}: token shard, {} tokens in {} documents, {} bytes of text, vocabulary {}, tokenizer {}, "
      "checksum {} verified",
      path.string(), info.tokens, info.documents, info.text_bytes, info.vocabulary_size,
      info.tokenizer_fingerprint, info.checksum));
}

/// Compares the shards of a folder with the list beside them.
void inspect_shard_list(const fs::path& list, Report& report) {
  const TokenCorpus corpus({list.parent_path()});
  const auto listed = read_shard_list(list.parent_path()).size();
  report.json["lists"].push_back({{"path", list.string()}, {"shards", listed}});
  report.add(fmt::format("{}: list of shards, all {} are as listed", list.string(), listed));
}

void inspect_vocabulary(const fs::path& path, Report& report) {
  const FgramVocabulary vocabulary(path);
  report.json["kind"] = "fgrams";
  report.json["size"] = vocabulary.size();
  report.json["max_length"] = vocabulary.max_length();
  report.json["fingerprint"] = vocabulary.fingerprint();
  report.add(fmt::format(
      "{}: f-gram vocabulary, {} f-grams of length 2..{}, token vocabulary {}, "
      "tokenizer {}, fingerprint {}",
      path.string(), vocabulary.size(), vocabulary.max_length(), vocabulary.token_vocabulary_size(),
      vocabulary.tokenizer_fingerprint(), vocabulary.fingerprint()));
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(vocabulary.max_length()) + 1, 0);
  for (std::int64_t id = 0; id < vocabulary.size(); ++id) {
    ++lengths.at(static_cast<std::size_t>(vocabulary.length(id)));
  }
  for (std::size_t length = 2; length < lengths.size(); ++length) {
    report.add(fmt::format("  length {}: {}", length, lengths[length]));
  }
}

void inspect_checkpoint(const fs::path& path, Report& report) {
  const auto problems = checkpoint_problems(path);
  if (!problems.empty()) {
    throw InputError(fmt::format("damaged checkpoint: {}", fmt::join(problems, "; ")));
  }
  const CheckpointManifest manifest = read_manifest(path);
  report.json["kind"] = "checkpoint";
  report.json["step"] = manifest.step;
  report.json["tokens"] = manifest.tokens;
  std::int64_t bytes = 0;
  const StoredCheckpoint stored = load_manifest(path);
  for (const auto& file : stored.files) bytes += file.at("bytes").get<std::int64_t>();
  report.json["files"] = stored.files;
  report.add(fmt::format(
      "{}: checkpoint of step {}, {} tokens seen, {}; {} bytes in {} files, checksums verified",
      path.string(), manifest.step, manifest.tokens,
      manifest.fgrams.is_null() ? "a baseline" : "with f-gram model", bytes, stored.files.size()));
  report.add("  model: " + manifest.model.dump());
  inspect_tensors_of(path, report);
}

void inspect_bundle(const fs::path& path, Report& report) {
  const auto problems = bundle_problems(path);
  if (!problems.empty()) {
    throw InputError(fmt::format("damaged bundle: {}", fmt::join(problems, "; ")));
  }
  const Bundle bundle = open_bundle(path);
  const auto begin = std::ssize(report.lines);
  inspect_safetensors(path / "model.safetensors", report);
  report.json["kind"] = "bundle";
  report.json["step"] = bundle.description.at("step");
  std::string table = "no f-gram table (a baseline)";
  if (bundle.table) {
    report.json["rows"] = bundle.table->rows();
    table = fmt::format("f-gram table of {} rows of width {} in {}", bundle.table->rows(),
                        bundle.table->width(), name_of(bundle.table->layout().type));
  }
  report.lines.insert(report.lines.begin() + begin,
                      fmt::format("{}: bundle of step {}, {}; checksums verified", path.string(),
                                  bundle.description.at("step").dump(), table));
}

void inspect_export(const fs::path& path, Report& report) {
  const auto problems = export_problems(path);
  if (!problems.empty()) {
    throw InputError(fmt::format("damaged export: {}", fmt::join(problems, "; ")));
  }
  report.add(fmt::format("{}: export of `scone export`; checksums verified", path.string()));
  for (const char* name : {"model.safetensors", "fgram_model.safetensors"}) {
    if (fs::exists(path / name)) inspect_safetensors(path / name, report);
  }
  report.json["kind"] = "export";
}

void inspect_tokenizer(const fs::path& path, Report& report) {
  const auto tokenizer = load_tokenizer(path);
  report.json["kind"] = "tokenizer";
  report.json["vocabulary_size"] = tokenizer->vocabulary_size();
  report.json["fingerprint"] = tokenizer->fingerprint();
  report.add(fmt::format("{}: tokenizer, {}, {} tokens, end of document {}, fingerprint {}",
                         path.string(), tokenizer->description(), tokenizer->vocabulary_size(),
                         tokenizer->end_of_document(), tokenizer->fingerprint()));
}

void inspect_hdf5(const fs::path& path, Report& report) {
  std::string format;
  {
    const Hdf5File file = Hdf5File::open(path);
    if (file.has_attribute("format")) format = file.string_attribute("format");
  }
  if (format == "scone-tokens") {
    report.json["kind"] = "tokens";
    inspect_shard(path, report);
  } else if (format == "scone-fgrams") {
    inspect_vocabulary(path, report);
  } else if (format == "scone-matches") {
    const AnnotationInfo info = verify_annotation(path);
    report.json["kind"] = "matches";
    report.json["tokens"] = info.tokens;
    report.json["fgrams_fingerprint"] = info.fgrams_fingerprint;
    report.add(fmt::format(
        "{}: match lengths of {} tokens, of the {} f-grams of length 2..{} with fingerprint {}; "
        "checksum verified",
        path.string(), info.tokens, info.fgrams_size, info.fgrams_max_length,
        info.fgrams_fingerprint));
  } else if (format == "scone-checkpoint-slices") {
    report.json["kind"] = "checkpoint-slices";
    report.add(fmt::format(
        "{}: one rank's file of a checkpoint (its checksum stands in manifest.json: inspect the "
        "folder)",
        path.string()));
    inspect_slice_file(path, report);
  } else {
    throw InputError(fmt::format("{}: HDF5, but not of ours: attribute \"format\" is \"{}\"",
                                 path.string(), format));
  }
}

/// "step-00000010" of "step-00000010/" too.
std::string folder_name(const fs::path& path) {
  const fs::path normal = path.lexically_normal();
  return (normal.filename().empty() ? normal.parent_path() : normal).filename().string();
}

/// A bundle, an export or a checkpoint, which are verified as a whole.
bool is_whole(const fs::path& folder) {
  return is_bundle(folder) || is_export(folder) || is_checkpoint(folder) ||
         is_checkpoint_name(folder_name(folder));
}

void inspect_whole(const fs::path& folder, Report& report) {
  if (is_bundle(folder)) return inspect_bundle(folder, report);
  if (is_export(folder)) return inspect_export(folder, report);
  inspect_checkpoint(folder, report);
}

/// What a folder holds of ours, at any depth.
struct FolderContents {
  std::vector<fs::path> wholes, shards, lists;  // shards: and other HDF5 files of ours
};

FolderContents contents_of(const fs::path& path) {
  FolderContents found;
  std::error_code error;
  auto entry = fs::recursive_directory_iterator(path, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const fs::path& each = entry->path();
    const std::string extension = each.extension().string();
    std::error_code dangling;  // of a link
    if (entry->is_directory(dangling)) {
      // By its name: other programs have a manifest.json too. ".tmp": what is not finished.
      const bool whole =
          is_bundle(each) || is_export(each) || is_checkpoint_name(folder_name(each));
      if (whole) found.wholes.push_back(each);
      if (whole || extension == ".tmp") entry.disable_recursion_pending();
    } else if ((extension == ".h5" || extension == ".matches") &&
               entry->is_regular_file(dangling)) {
      found.shards.push_back(each);
    } else if (each.filename() == kShardListName) {
      found.lists.push_back(each);
    }
  }
  if (error)
    throw InputError(fmt::format("{}: cannot be searched: {}", path.string(), error.message()));
  for (auto* paths : {&found.wholes, &found.shards, &found.lists})
    std::sort(paths->begin(), paths->end());
  return found;
}

/// A run's folder, or one with several of ours in it, such as a corpus.
void inspect_folder(const fs::path& path, Report& report) {
  const FolderContents found = contents_of(path);
  if (found.wholes.empty() && found.shards.empty()) {
    throw InputError(fmt::format(
        "{}: expected a bundle, a checkpoint, a run's folder or token shards; found none of them",
        path.string()));
  }
  std::vector<std::string> problems;
  const auto inspect_each = [&](const std::vector<fs::path>& paths, const auto& inspect_one) {
    for (const fs::path& each : paths) {
      try {
        inspect_one(each, report);
      } catch (const InputError& error) {
        problems.emplace_back(error.what());
      }
    }
  };
  inspect_each(found.wholes, inspect_whole);
  inspect_each(found.shards, inspect_hdf5);
  inspect_each(found.lists, inspect_shard_list);
  const bool checkpoints_alone =
      found.shards.empty() && std::all_of(found.wholes.begin(), found.wholes.end(), is_checkpoint);
  report.json["kind"] = checkpoints_alone ? "checkpoints" : "folder";
  if (!problems.empty()) throw InputError(fmt::format("{}", fmt::join(problems, "\n")));
}

void inspect(const fs::path& path, Report& report) {
  if (!fs::exists(path)) {
    throw InputError(fmt::format("{}: no such file or folder", path.string()));
  }
  if (fs::is_directory(path)) {
    return is_whole(path) ? inspect_whole(path, report) : inspect_folder(path, report);
  }
  const std::string name = path.filename().string();
  if (name == "bundle.json") return inspect_bundle(path.parent_path(), report);
  if (name == "manifest.json") return inspect_checkpoint(path.parent_path(), report);
  if (path.extension() == ".safetensors") return inspect_safetensors(path, report);
  if (path.extension() == ".h5" || path.extension() == ".hdf5" || path.extension() == ".matches") {
    return inspect_hdf5(path, report);
  }
  // A table's files have no checksums of their own: the bundle's are.
  const fs::path bundle = fs::absolute(path).parent_path().parent_path();
  if (path.extension() == ".bin" && is_bundle(bundle)) return inspect_bundle(bundle, report);
  if (name == "tokenizer.json" || name == "tokenizer.model") return inspect_tokenizer(path, report);
  if (name == kShardListName) return inspect_shard_list(path, report);
  throw InputError(fmt::format(
      "{}: unknown kind of file; expected .h5, .safetensors, a bundle's .bin, tokenizer.json or "
      "tokenizer.model, shards.json, bundle.json or manifest.json",
      path.string()));
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  auto path = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "Says what a file or folder of ours is and verifies it whole, checksums included: token "
      "shards, f-gram vocabulary, checkpoint, bundle, export, safetensors, tokenizer. Exit code 2: "
      "damaged or unknown.");
  command->add_option("path", *path, "File or folder")->required();
  command->callback([path, &action] {
    action = [path](CommandContext& context) {
      if (!context.is_root()) return 0;
      Report report;
      inspect(*path, report);
      if (!context.json) {
        for (const std::string& line : report.lines) fmt::print("{}\n", line);
      }
      report.json["path"] = *path;
      report.json["valid"] = true;
      context.print_result(report.json);
      return 0;
    };
  });
}

}  // namespace scone
