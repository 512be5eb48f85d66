#include "checkpoint/bundle.h"

#include <fmt/format.h>

#include "checkpoint/durable_file.h"
#include "checkpoint/export_names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/table_matcher.h"
#include "data/json_integer.h"
#include "model/main_model.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

/// What readers take from the description, and that it lists the files it speaks of.
void check_description(const nlohmann::json& description, const ModelConfig& config,
                       const fs::path& json_path) {
  json_integer(description.at("step"));
  description.at("attention_across_documents").get<bool>();
  description.at("tokenizer").at("fingerprint").get<std::string>();
  const auto length = json_integer(description.at("sequence_length"));
  if (length < 1 || length > config.main.context) {
    throw InputError(fmt::format("{}: sequence_length: expected 1..{}, found {}",
                                 json_path.string(), config.main.context, length));
  }
  const bool has_table = !description.at("table").is_null();
  if (has_table != (config.fgram.layers > 0)) {
    throw InputError(fmt::format("{}: {}; bake it again", json_path.string(),
                                 has_table ? "a table, but a model without f-gram model"
                                           : "no table, but a model with f-gram model"));
  }
  std::vector<std::string> names{description.at("tokenizer").at("file").get<std::string>(),
                                 "model.safetensors"};
  if (has_table) names.emplace_back(kTableIndexFile);
  for (const std::string& name : names) {
    if (!description.at("files").contains(name)) {
      throw InputError(
          fmt::format("{}: \"files\" does not list {}; bake it again", json_path.string(), name));
    }
  }
}

nlohmann::json read_description(const fs::path& json_path) {
  nlohmann::json description = read_json_file(json_path);
  if (description.at("format") != kBundleFormat ||
      description.at("format_version") != kBundleVersion) {
    throw InputError(
        fmt::format("{}: expected the format \"{}\", version {}, found {}, version "
                    "{}; bake with this version of the program",
                    json_path.string(), kBundleFormat, kBundleVersion,
                    description.at("format").dump(), description.at("format_version").dump()));
  }
  return description;
}

void open_table(Bundle& bundle, const RowSourceOptions& rows) {
  bundle.table = std::make_unique<FgramTable>(bundle.folder, rows);
  bundle.matcher = std::make_unique<TableMatcher>(
      bundle.table->index(),
      bundle.description.at("tokenizer").at("fingerprint").get<std::string>());
  const fs::path json_path = bundle.folder / "bundle.json";
  for (std::int64_t file = 0; file < bundle.table->layout().files(); ++file) {
    if (!bundle.description.at("files").contains(table_file_name(file))) {
      throw InputError(fmt::format("{}: \"files\" does not list {}; bake it again",
                                   json_path.string(), table_file_name(file)));
    }
  }
  if (bundle.table->width() != bundle.config.main.width) {
    throw InputError(fmt::format("{}: table.width: expected the model's width {}, found {}",
                                 json_path.string(), bundle.config.main.width,
                                 bundle.table->width()));
  }
  const std::int64_t tokens = bundle.table->index().header().token_vocabulary_size;
  if (tokens != bundle.config.vocabulary_size) {
    throw InputError(fmt::format(
        "{}: f-grams over {} tokens, but the model has {}; the index is of another bundle",
        (bundle.folder / kTableIndexFile).string(), tokens, bundle.config.vocabulary_size));
  }
}

}  // namespace

bool is_bundle(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / "bundle.json", error);
}

nlohmann::json describe_table(const TableLayout& layout) {
  return {{"dtype", name_of(layout.type)},
          {"width", layout.width},
          {"rows", layout.rows},
          {"rows_per_file", layout.rows_per_file},
          {"record_bytes", layout.bytes_of_record()},
          {"data_offset", kTableDataOffset},
          {"index", kTableIndexFile}};
}

Bundle open_bundle(const fs::path& folder, const RowSourceOptions& rows) {
  const fs::path json_path = folder / "bundle.json";
  Bundle bundle;
  bundle.folder = folder;
  try {
    bundle.description = read_description(json_path);
    const nlohmann::json& description = bundle.description;
    bundle.config = description.at("model").get<ModelConfig>();
    check_description(description, bundle.config, json_path);
    const auto problems = file_problems(folder, description.at("files"), false);
    if (!problems.empty()) {
      throw InputError(fmt::format("damaged bundle: {}; bake it again", fmt::join(problems, "; ")));
    }
    if (!description.at("table").is_null()) open_table(bundle, rows);
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: {}", json_path.string(), error.what()));
  }
  return bundle;
}

std::vector<std::string> bundle_problems(const fs::path& folder) {
  const fs::path json_path = folder / "bundle.json";
  try {
    auto problems =
        file_problems(folder, read_description(json_path).value("files", nlohmann::json{}), true);
    if (problems.empty()) {
      const Bundle bundle = open_bundle(folder);
      ParameterSet parameters(main_parameter_specs(bundle.config), Device::cpu);
      bundle.load_main_parameters(parameters);
    }
    return problems;
  } catch (const nlohmann::json::exception& error) {
    return {fmt::format("{}: {}", json_path.string(), error.what())};
  } catch (const InputError& error) {
    return {error.what()};
  }
}

void Bundle::load_main_parameters(ParameterSet& parameters) const {
  const SafetensorsFile file(folder / "model.safetensors");
  for (const NamedTensor& view : exported_views(parameters)) file.read(view.name, view.tensor);
}

}  // namespace scone
