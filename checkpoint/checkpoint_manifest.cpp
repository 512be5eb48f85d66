#include "checkpoint/checkpoint_manifest.h"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "checkpoint/file_checksum.h"
#include "data/json_integer.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "scone-checkpoint";
constexpr std::int64_t kVersion = 2;
constexpr std::string_view kSealBegin = ",\n  \"xxh3\": \"";
constexpr std::string_view kSealEnd = "\"\n}\n";
constexpr std::size_t kChecksumDigits = 16;

std::string checksum_of(std::string_view text) {
  StreamingChecksum checksum;
  checksum.add(std::as_bytes(std::span(text)));
  return checksum.hex();
}

/// Checks the last key, written by seal_manifest. It is compared as bytes, so that a change of any
/// byte of the file is found.
void check_seal(const fs::path& path, std::string_view text) {
  const std::size_t seal = kSealBegin.size() + kChecksumDigits + kSealEnd.size();
  const bool sealed = text.size() > seal && text.ends_with(kSealEnd) &&
                      text.substr(text.size() - seal).starts_with(kSealBegin);
  if (!sealed) {
    throw InputError(
        fmt::format("{}: does not end with its checksum: truncated or changed", path.string()));
  }
  const std::string_view body = text.substr(0, text.size() - seal);
  const std::string_view expected = text.substr(body.size() + kSealBegin.size(), kChecksumDigits);
  const std::string found = checksum_of(body);
  if (expected != found) {
    throw InputError(fmt::format("{}: expected checksum {}, found {} (content changed)",
                                 path.string(), expected, found));
  }
}

void check_version(const fs::path& path, const nlohmann::json& json) {
  const auto format = json.at("format").get<std::string>();
  if (format != kFormat) {
    throw InputError(fmt::format("{}: expected the format \"{}\", found \"{}\"", path.string(),
                                 kFormat, format));
  }
  const auto version = json_integer(json.at("format_version"));
  if (version == kVersion) return;
  throw InputError(fmt::format(
      "{}: expected format version {}, found {}; {}", path.string(), kVersion, version,
      version < kVersion
          ? "bake or finish the run with the program version that wrote it, or move the "
            "checkpoint away and start the run anew"
          : "use the program version that wrote it"));
}

void check_files(const fs::path& path, const nlohmann::json& files) {
  if (!files.is_object()) throw InputError(path.string() + ": \"files\" is not an object");
  for (const auto& [name, file] : files.items()) {
    if (name.empty() || name.front() == '.' || name.find('/') != std::string::npos) {
      throw InputError(
          fmt::format("{}: \"files\": \"{}\" is not a file of this folder", path.string(), name));
    }
    if (json_integer(file.at("bytes")) < 0) {
      throw InputError(fmt::format("{}: \"files\": {}: negative size", path.string(), name));
    }
    file.at("xxh3").get<std::string>();
  }
}

StoredTensor parse_tensor(const nlohmann::json& json, const nlohmann::json& files) {
  StoredTensor tensor;
  tensor.shape = json_integers(json.at("shape"));
  std::vector<Box> boxes;
  for (const auto& entry : json.at("boxes")) {
    StoredBox stored{.file = entry.at("file"),
                     .offset = json_integer(entry.at("offset")),
                     .box = {.begin = json_integers(entry.at("begin")),
                             .extent = json_integers(entry.at("extent"))}};
    boxes.push_back(stored.box);
    const auto bytes = 4 * elements_of(stored.box.extent);
    const auto file_size = json_integer(files.at(stored.file).at("bytes"));
    if (stored.offset < 0 || bytes > file_size || stored.offset > file_size - bytes) {
      throw std::runtime_error(fmt::format("{} bytes at {} are beyond the end of {} of {} bytes",
                                           bytes, stored.offset, stored.file, file_size));
    }
    tensor.boxes.push_back(std::move(stored));
  }
  const std::string problem = cover_problem(tensor.shape, std::move(boxes));
  if (!problem.empty()) throw std::runtime_error(problem);
  return tensor;
}

}  // namespace

std::string seal_manifest(std::string json) {
  while (!json.empty() && (json.back() == '\n' || json.back() == '}')) {
    const bool brace = json.back() == '}';
    json.pop_back();
    if (brace) break;
  }
  while (!json.empty() && json.back() == '\n') json.pop_back();
  const std::string checksum = checksum_of(json);
  json += kSealBegin;
  json += checksum;
  json += kSealEnd;
  return json;
}

std::string manifest_text(const StoredCheckpoint& checkpoint) {
  const CheckpointManifest& manifest = checkpoint.manifest;
  nlohmann::ordered_json head = {
      {"format", kFormat},         {"format_version", kVersion}, {"step", manifest.step},
      {"tokens", manifest.tokens}, {"model", manifest.model},    {"run", manifest.run},
      {"data", manifest.data},     {"fgrams", manifest.fgrams},  {"files", checkpoint.files}};
  std::string text = head.dump(2);
  text.resize(text.size() - 2);  // "\n}"
  text += ",\n  \"tensors\": {";
  const char* separator = "\n";
  for (const auto& [name, tensor] : checkpoint.tensors) {  // one a line
    nlohmann::ordered_json boxes = nlohmann::ordered_json::array();
    for (const StoredBox& stored : tensor.boxes) {
      boxes.push_back({{"file", stored.file},
                       {"offset", stored.offset},
                       {"begin", stored.box.begin},
                       {"extent", stored.box.extent}});
    }
    const nlohmann::ordered_json json = {{"shape", tensor.shape}, {"boxes", boxes}};
    text += fmt::format("{}    {}: {}", std::exchange(separator, ",\n"),
                        nlohmann::json(name).dump(), json.dump());
  }
  return seal_manifest(text + "\n  }\n}");
}

StoredCheckpoint parse_manifest(const fs::path& path, const std::string& text) {
  StoredCheckpoint checkpoint;
  std::string at;  // the tensor being parsed
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    check_version(path, json);  // first: another version need not have this one's checksum
    check_seal(path, text);
    checkpoint.manifest.step = json_integer(json.at("step"));
    checkpoint.manifest.tokens = json_integer(json.at("tokens"));
    checkpoint.manifest.model = json.at("model");
    checkpoint.manifest.run = json.at("run");
    checkpoint.manifest.data = json.at("data");
    checkpoint.manifest.fgrams = json.at("fgrams");
    checkpoint.files = json.at("files");
    check_files(path, checkpoint.files);
    const nlohmann::json& tensors = json.at("tensors");
    if (!tensors.is_object()) throw std::runtime_error("\"tensors\" is not an object");
    for (const auto& [name, tensor] : tensors.items()) {
      at = fmt::format("tensor {}: ", name);
      checkpoint.tensors[name] = parse_tensor(tensor, checkpoint.files);
    }
  } catch (const InputError&) {
    throw;
  } catch (const std::exception& error) {  // of JSON, or about boxes
    throw InputError(fmt::format("{}: {}{}", path.string(), at, error.what()));
  }
  return checkpoint;
}

StoredCheckpoint load_manifest(const fs::path& checkpoint) {
  const fs::path path = checkpoint / "manifest.json";
  std::ifstream file(path, std::ios::binary);
  if (!file) throw InputError(fmt::format("{}: cannot be opened", path.string()));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return parse_manifest(path, text);
}

}  // namespace scone
