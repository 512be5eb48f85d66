#include "checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <stdexcept>
#include <system_error>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/slice_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

std::vector<TensorSlice> whole_slices(std::span<const NamedTensor> tensors) {
  std::vector<TensorSlice> slices;
  slices.reserve(tensors.size());
  for (const NamedTensor& named : tensors) {
    slices.push_back(
        {named.name, named.tensor.shape(), Shape(named.tensor.shape().size(), 0), named.tensor});
  }
  return slices;
}

}  // namespace

bool is_checkpoint(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / "manifest.json", error);
}

std::vector<std::string> checkpoint_problems(const fs::path& checkpoint, bool checksums) {
  try {
    const StoredCheckpoint stored = load_manifest(checkpoint);
    if (stored.files.empty()) return {};  // of tensors without elements
    return file_problems(checkpoint, stored.files, checksums);
  } catch (const InputError& error) {
    return {error.what()};
  }
}

std::optional<fs::path> find_checkpoint(const fs::path& path, std::vector<std::string>* skipped) {
  std::error_code error;
  fs::path given = path.lexically_normal();
  if (given.filename().empty()) given = given.parent_path();  // "folder/"
  std::map<std::int64_t, fs::path> candidates;
  if (is_checkpoint(given) || is_checkpoint_name(given.filename().string())) {
    if (fs::is_directory(given, error)) candidates[0] = given;
  } else {
    const fs::path inside = given / "checkpoints";
    const fs::file_type type = fs::symlink_status(inside, error).type();
    if (type != fs::file_type::not_found && !fs::is_directory(inside, error)) {
      throw InputError(fmt::format("{}: expected a folder of checkpoints: {}", inside.string(),
                                   error ? error.message() : "it is none"));
    }
    candidates = list_checkpoints(type == fs::file_type::not_found ? given : inside);
  }
  for (auto candidate = candidates.rbegin(); candidate != candidates.rend(); ++candidate) {
    const auto problems = checkpoint_problems(candidate->second);
    if (problems.empty()) return candidate->second;
    if (skipped != nullptr) {
      skipped->push_back(
          fmt::format("{}: {}", candidate->second.string(), fmt::join(problems, "; ")));
    }
  }
  return std::nullopt;
}

CheckpointManifest read_manifest(const fs::path& checkpoint) {
  return load_manifest(checkpoint).manifest;
}

std::map<std::string, Shape> tensor_shapes(const fs::path& checkpoint) {
  std::map<std::string, Shape> shapes;
  for (const auto& [name, tensor] : load_manifest(checkpoint).tensors) shapes[name] = tensor.shape;
  return shapes;
}

void read_slices(const fs::path& checkpoint, std::span<const TensorSlice> targets) {
  const StoredCheckpoint stored = load_manifest(checkpoint);
  const std::string manifest = (checkpoint / "manifest.json").string();
  SliceFileReader reader(checkpoint);
  for (const TensorSlice& target : targets) {
    const auto found = stored.tensors.find(target.name);
    if (found == stored.tensors.end()) {
      throw InputError(fmt::format("{}: no tensor {}; the checkpoint is of another model", manifest,
                                   target.name));
    }
    const StoredTensor& tensor = found->second;
    if (tensor.shape != target.global_shape) {
      throw InputError(fmt::format(
          "{}: tensor {}: expected the shape {}, found {}; the checkpoint is of "
          "another model configuration",
          manifest, target.name, describe(target.global_shape), describe(tensor.shape)));
    }
    if (!is_inside({target.begin, target.values.shape()}, tensor.shape)) {
      throw std::logic_error(fmt::format("read_slices: {}: a box at {} of extent {} in {}",
                                         target.name, describe(target.begin),
                                         describe(target.values.shape()), describe(tensor.shape)));
    }
    if (target.values.empty()) continue;
    if (target.values.device() != Device::cpu)
      throw std::logic_error("read_slices: " + target.name + " is on a device");
    std::int64_t elements = 0;
    for (const StoredBox& box : tensor.boxes) {
      elements += reader.read(box.file, box.offset, box.box, target);
    }
    if (elements != target.values.elements()) {
      throw std::logic_error("read_slices: a checked manifest does not cover " + target.name);
    }
  }
}

void read_tensors(const fs::path& checkpoint, std::span<const NamedTensor> tensors) {
  read_slices(checkpoint, whole_slices(tensors));
}

void read_parameters(const fs::path& checkpoint, ParameterSet& parameters) {
  std::vector<NamedTensor> tensors;
  tensors.reserve(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    tensors.push_back({"parameters/" + parameters.spec(i).name, parameters.value(i)});
  }
  read_tensors(checkpoint, tensors);
}

fs::path write_checkpoint(const fs::path& checkpoints, const CheckpointManifest& manifest,
                          std::span<const NamedTensor> tensors, int keep) {
  CheckpointWriter writer(checkpoints, make_self_communicator(), {.keep = keep});
  writer.save(manifest, whole_slices(tensors));
  const SaveOutcome outcome = writer.take_outcome().value();
  if (!outcome.saved()) throw std::runtime_error(outcome.error);
  return outcome.path;
}

}  // namespace scone
