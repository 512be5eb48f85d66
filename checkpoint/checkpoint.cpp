#include "checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <map>
#include <stdexcept>
#include <system_error>

#include "checkpoint/durable_file.h"
#include "data/hdf5_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "scone-checkpoint";
constexpr std::int64_t kVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kTensors = "tensors.h5";
constexpr const char* kStepPrefix = "step-";
constexpr const char* kTemporaryPrefix = ".tmp-";

/// Checkpoints of a folder by step, from their names alone.
std::map<std::int64_t, fs::path> list_checkpoints(const fs::path& folder) {
  std::map<std::int64_t, fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const std::string prefix = kStepPrefix;
    if (!name.starts_with(prefix) || name.size() == prefix.size() || name.size() > 24 ||
        !std::all_of(name.begin() + static_cast<std::ptrdiff_t>(prefix.size()), name.end(),
                     [](char c) { return c >= '0' && c <= '9'; }) ||
        !entry.is_directory(error)) {
      continue;
    }
    found[std::stoll(name.substr(prefix.size()))] = entry.path();
  }
  return found;
}

void remove_stale_folders(const fs::path& checkpoints) {
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    if (entry.path().filename().string().starts_with(kTemporaryPrefix)) {
      stale.push_back(entry.path());
    }
  }
  for (const fs::path& path : stale) fs::remove_all(path);
}

void write_tensors(const fs::path& path, std::span<const NamedTensor> tensors) {
  Hdf5File file = Hdf5File::create(path);
  file.set_attribute("format", std::string("scone-checkpoint-tensors"));
  file.set_attribute("format_version", kVersion);
  for (const NamedTensor& named : tensors) {
    file.write(named.name, H5T_NATIVE_FLOAT, named.tensor.shape(), named.tensor.data<float>());
  }
  file.close();
}

std::string shape_text(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

template <class T>
T manifest_value(const nlohmann::json& manifest, const char* key, const fs::path& path) {
  try {
    return manifest.at(key).get<T>();
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: key \"{}\": {}", path.string(), key, error.what()));
  }
}

/// Parses manifest.json and checks its format and version.
nlohmann::json load_manifest_json(const fs::path& checkpoint) {
  const fs::path path = checkpoint / kManifest;
  nlohmann::json manifest = read_json_file(path);
  const auto format = manifest_value<std::string>(manifest, "format", path);
  if (format != kFormat) {
    throw InputError(fmt::format("{}: expected the format \"{}\", found \"{}\"", path.string(),
                                 kFormat, format));
  }
  const auto version = manifest_value<std::int64_t>(manifest, "format_version", path);
  if (version != kVersion) {
    throw InputError(fmt::format(
        "{}: expected format version {}, found {}; use the program version that wrote it",
        path.string(), kVersion, version));
  }
  return manifest;
}

}  // namespace

fs::path write_checkpoint(const fs::path& checkpoints, const CheckpointManifest& manifest,
                          std::span<const NamedTensor> tensors, int keep) {
  fs::create_directories(checkpoints);
  remove_stale_folders(checkpoints);
  std::int64_t needed = std::int64_t{1} << 20;  // manifest, names and the file system's own
  for (const NamedTensor& named : tensors) {
    if (named.tensor.dtype() != DType::fp32 || named.tensor.device() != Device::cpu) {
      throw std::logic_error("checkpoint tensor " + named.name + " is not fp32 on the host");
    }
    needed += static_cast<std::int64_t>(named.tensor.bytes());
  }
  require_free_space(checkpoints, needed);

  const std::string name = fmt::format("{}{:08d}", kStepPrefix, manifest.step);
  const fs::path temporary = checkpoints / (kTemporaryPrefix + name);
  const fs::path final_path = checkpoints / name;
  try {
    fs::create_directory(temporary);
    write_tensors(temporary / kTensors, tensors);
    sync_path(temporary / kTensors);
    const nlohmann::json json = {{"format", kFormat},
                                 {"format_version", kVersion},
                                 {"step", manifest.step},
                                 {"tokens", manifest.tokens},
                                 {"model", manifest.model},
                                 {"run", manifest.run},
                                 {"data", manifest.data},
                                 {"fgrams", manifest.fgrams},
                                 {"files", describe_files(temporary, {kTensors})}};
    write_text_durably(temporary / kManifest, json.dump(2) + "\n");
    sync_path(temporary);
    publish_folder(temporary, final_path,
                   checkpoints / fmt::format("{}old-{}", kTemporaryPrefix, name));
  } catch (const std::exception& error) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw std::runtime_error(
        fmt::format("checkpoint {} was not written: {}", final_path.string(), error.what()));
  }

  if (keep >= 1) {
    // A checkpoint of a later step than the one just written belongs to a run that went back: it
    // counts as any other, the newest stay.
    const auto all = list_checkpoints(checkpoints);
    auto surplus = static_cast<std::int64_t>(all.size()) - keep;
    for (const auto& [step, path] : all) {
      if (surplus <= 0) break;
      if (step == manifest.step) continue;
      fs::remove_all(path);
      --surplus;
    }
  }
  return final_path;
}

bool is_checkpoint(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / kManifest, error);
}

std::vector<std::string> checkpoint_problems(const fs::path& checkpoint, bool checksums) {
  try {
    read_manifest(checkpoint);
    const nlohmann::json manifest = load_manifest_json(checkpoint);
    const auto files = manifest_value<nlohmann::json>(manifest, "files", checkpoint / kManifest);
    if (!files.contains(kTensors)) {
      return {fmt::format("{}: \"files\" does not list {}", (checkpoint / kManifest).string(),
                          kTensors)};
    }
    return file_problems(checkpoint, files, checksums);
  } catch (const InputError& error) {
    return {error.what()};
  }
}

std::optional<fs::path> find_checkpoint(const fs::path& path, std::vector<std::string>* skipped) {
  std::error_code error;
  fs::path given = path.lexically_normal();
  if (given.filename().empty()) given = given.parent_path();  // "folder/"
  std::map<std::int64_t, fs::path> candidates;
  if (is_checkpoint(given) || given.filename().string().starts_with(kStepPrefix)) {
    if (fs::is_directory(given, error)) candidates[0] = given;
  } else {
    candidates = list_checkpoints(
        fs::is_directory(given / "checkpoints", error) ? given / "checkpoints" : given);
  }
  for (auto candidate = candidates.rbegin(); candidate != candidates.rend(); ++candidate) {
    const auto problems = checkpoint_problems(candidate->second);
    if (problems.empty()) return candidate->second;
    if (skipped != nullptr) {
      skipped->push_back(
          fmt::format("{} skipped: {}", candidate->second.string(), fmt::join(problems, "; ")));
    }
  }
  return std::nullopt;
}

CheckpointManifest read_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / kManifest;
  const nlohmann::json json = load_manifest_json(checkpoint);
  CheckpointManifest manifest;
  manifest.step = manifest_value<std::int64_t>(json, "step", path);
  manifest.tokens = manifest_value<std::int64_t>(json, "tokens", path);
  manifest.model = manifest_value<nlohmann::json>(json, "model", path);
  manifest.run = manifest_value<nlohmann::json>(json, "run", path);
  manifest.data = manifest_value<nlohmann::json>(json, "data", path);
  manifest.fgrams = manifest_value<nlohmann::json>(json, "fgrams", path);
  return manifest;
}

void read_tensors(const fs::path& checkpoint, std::span<const NamedTensor> tensors) {
  const fs::path path = checkpoint / kTensors;
  const Hdf5File file = Hdf5File::open(path);
  for (const NamedTensor& named : tensors) {
    if (!file.has_dataset(named.name)) {
      throw InputError(fmt::format(
          "{}: no tensor {}; the checkpoint is of another model or was not written whole",
          path.string(), named.name));
    }
    const Shape found = file.dataset_shape(named.name);
    if (found != named.tensor.shape()) {
      throw InputError(fmt::format(
          "{}: tensor {}: expected the shape {}, found {}; the checkpoint is of "
          "another model configuration",
          path.string(), named.name, shape_text(named.tensor.shape()), shape_text(found)));
    }
    file.read(named.name, H5T_NATIVE_FLOAT, named.tensor.data<float>());
  }
}

void read_parameters(const fs::path& checkpoint, ParameterSet& parameters) {
  std::vector<NamedTensor> tensors;
  tensors.reserve(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    tensors.push_back({"parameters/" + parameters.spec(i).name, parameters.value(i)});
  }
  read_tensors(checkpoint, tensors);
}

}  // namespace scone
