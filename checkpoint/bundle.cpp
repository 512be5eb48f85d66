#include "checkpoint/bundle.h"

#include <fmt/format.h>

#include <map>

#include "checkpoint/durable_file.h"
#include "checkpoint/export_names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/table/bundle_file.h"
#include "checkpoint/table_matcher.h"
#include "model/main_model.h"
#include "parallel/error.h"
#include "parallel/json_field.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

fs::path description_path(const fs::path& folder) { return folder / "bundle.json"; }

nlohmann::json read_description(const fs::path& folder) {
  const std::string source = description_path(folder).string();
  nlohmann::json description = parse_json_strictly(read_bundle_text(folder), source);
  const JsonField root(description, source);
  root["format"].expect(kBundleFormat, "");
  root["format_version"].expect(kBundleVersion, " (bake with this version of the program)");
  return description;
}

/// That "files" lists plain entries, of files in the bundle's folder alone.
void check_list_of_files(const JsonField& files, const fs::path& folder) {
  for (const auto& [name, ignored] : files.object().items()) {
    bundle_file(folder, name);
    files[name]["bytes"].integer(0, INT64_MAX);
    files[name]["xxh3"].text();
  }
}

/// What readers take from the description, and that it lists the files it speaks of.
void check_description(const JsonField& description, const ModelConfig& config) {
  for (const char* key : {"step", "tokens"}) description[key].integer(0, INT64_MAX);
  description["attention_across_documents"].boolean();
  description["sequence_length"].integer(1, config.main.context);
  const JsonField table = description["table"], tokenizer = description["tokenizer"];
  if (config.fgram.layers > 0 && table.is_null()) {
    table.reject("a table, as the model has an f-gram model (there is no table; bake it again)");
  }
  if (config.fgram.layers == 0) {
    table.expect(nullptr, ", as the model has no f-gram model (bake it again)");
  }
  tokenizer["fingerprint"].text();
  const std::string tokenizer_file = tokenizer["file"].text();
  if (tokenizer_file.empty() || tokenizer_file == "." || tokenizer_file == ".." ||
      fs::path(tokenizer_file).filename() != tokenizer_file) {
    tokenizer["file"].reject("the name of a file beside bundle.json");
  }
  const JsonField files = description["files"];
  if (!files.object().contains(tokenizer_file)) {
    tokenizer["file"].reject("a file that \"files\" lists");
  }
  files[kBundleModelFile].object();
  if (!table.is_null()) files[kTableIndexFile].object();
}

/// That model.safetensors holds the model, before memory is taken for what the description says.
void check_model_file(const SafetensorsFile& file, const ModelConfig& config) {
  std::map<std::string, const Shape*> found;
  for (const SafetensorsEntry& entry : file.entries()) found[entry.name] = &entry.shape;
  const auto fail = [&](const std::string& name, const std::string& expected,
                        const std::string& held) {
    throw InputError(fmt::format("{}: tensor {}: expected {} by \"model\" of bundle.json, found {}",
                                 file.path().string(), name, expected, held));
  };
  std::size_t expected = 0;
  for (const ParameterSpec& spec : main_parameter_specs(config)) {
    const auto names = export_names(spec.name);
    Shape shape = spec.shape;
    shape.at(0) /= std::ssize(names);
    expected += names.size();
    for (const std::string& name : names) {
      const std::string wanted = fmt::format("the shape [{}]", fmt::join(shape, ", "));
      const auto held = found.find(name);
      if (held == found.end()) fail(name, wanted, "no such tensor");
      if (*held->second != shape) {
        fail(name, wanted, fmt::format("[{}]", fmt::join(*held->second, ", ")));
      }
    }
  }
  if (expected != found.size()) {
    throw InputError(fmt::format("{}: expected {} tensors by \"model\" of bundle.json, found {}",
                                 file.path().string(), expected, found.size()));
  }
}

void open_table(Bundle& bundle, const RowSourceOptions& rows) {
  bundle.table = std::make_unique<FgramTable>(bundle.folder, rows);
  bundle.matcher = std::make_unique<TableMatcher>(
      bundle.table->index(),
      bundle.description.at("tokenizer").at("fingerprint").get<std::string>());
  const fs::path json_path = description_path(bundle.folder);
  const JsonField files = JsonField(bundle.description, json_path.string())["files"];
  for (std::int64_t file = 0; file < bundle.table->layout().files(); ++file) {
    files[table_file_name(file)].object();
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
  Bundle bundle;
  bundle.folder = folder;
  bundle.description = read_description(folder);
  const JsonField description(bundle.description, description_path(folder).string());
  bundle.config = read_model_config(description["model"]);
  check_description(description, bundle.config);
  check_list_of_files(description["files"], folder);
  const auto problems = file_problems(folder, description["files"].object(), false);
  if (!problems.empty()) {
    throw InputError(fmt::format("damaged bundle: {}; bake it again", fmt::join(problems, "; ")));
  }
  if (!description["table"].is_null()) open_table(bundle, rows);
  check_model_file(SafetensorsFile(folder / kBundleModelFile), bundle.config);
  return bundle;
}

std::vector<std::string> bundle_problems(const fs::path& folder) {
  try {
    const nlohmann::json description = read_description(folder);
    const JsonField files = JsonField(description, description_path(folder).string())["files"];
    check_list_of_files(files, folder);
    auto problems = file_problems(folder, files.object(), true);
    if (problems.empty()) {
      const Bundle bundle = open_bundle(folder);
      ParameterSet parameters(main_parameter_specs(bundle.config), Device::cpu);
      bundle.load_main_parameters(parameters);
    }
    return problems;
  } catch (const InputError& error) {
    return {error.what()};
  }
}

void Bundle::load_main_parameters(ParameterSet& host) const {
  const SafetensorsFile file(folder / kBundleModelFile);
  for (const NamedTensor& view : exported_views(host)) file.read(view.name, view.tensor);
}

}  // namespace scone
