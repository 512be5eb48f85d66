#include "checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "checkpoint/file_checksum.h"
#include "checkpoint/table/row_format.h"
#include "parallel/error.h"

namespace scone {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little endian");

constexpr std::int64_t kMostHeaderBytes = 100'000'000;
constexpr const char* kMetadata = "__metadata__";

/// Bytes of one element of a type of the format; 0: unknown.
std::int64_t element_bytes(const std::string& dtype) {
  static const std::map<std::string, std::int64_t> kBytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  const auto found = kBytes.find(dtype);
  return found == kBytes.end() ? 0 : found->second;
}

[[noreturn]] void reject(const std::filesystem::path& path, const std::string& reason) {
  throw InputError(fmt::format("{}: not a valid safetensors file: {}", path.string(), reason));
}

/// Parses the header and rejects a key that stands twice in one object.
nlohmann::json parse_header(const std::filesystem::path& path, const std::string& text) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second) {
      reject(path, fmt::format("the header holds \"{}\" twice", value.get<std::string>()));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    reject(path, fmt::format("its header is no JSON: {}", error.what()));
  }
}

SafetensorsEntry parse_entry(const std::filesystem::path& path, const std::string& name,
                             const nlohmann::json& json, std::int64_t data_begin,
                             std::int64_t data_bytes) {
  SafetensorsEntry entry;
  entry.name = name;
  std::vector<std::uint64_t> shape, offsets;
  try {
    entry.dtype = json.at("dtype").get<std::string>();
    for (const auto& dimension : json.at("shape")) {
      if (!dimension.is_number_unsigned()) reject(path, "tensor " + name + ": a bad dimension");
      shape.push_back(dimension.get<std::uint64_t>());
    }
    for (const auto& offset : json.at("data_offsets")) {
      if (!offset.is_number_unsigned()) reject(path, "tensor " + name + ": a bad offset");
      offsets.push_back(offset.get<std::uint64_t>());
    }
  } catch (const nlohmann::json::exception& error) {
    reject(path, fmt::format("tensor {}: {}", name, error.what()));
  }
  const std::int64_t size = element_bytes(entry.dtype);
  if (size == 0) reject(path, fmt::format("tensor {}: unknown type \"{}\"", name, entry.dtype));
  const auto limit = static_cast<std::uint64_t>(data_bytes);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > limit) {
    reject(path, fmt::format("tensor {}: data_offsets must be [begin, end] within {} bytes, found "
                             "[{}]",
                             name, data_bytes, fmt::join(offsets, ", ")));
  }
  std::uint64_t bytes = static_cast<std::uint64_t>(size);
  for (const std::uint64_t dimension : shape) {
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) {
      reject(path, fmt::format("tensor {}: its shape overflows", name));
    }
    if (dimension > static_cast<std::uint64_t>(INT64_MAX)) reject(path, "a dimension too large");
    entry.shape.push_back(static_cast<std::int64_t>(dimension));
  }
  if (bytes != offsets[1] - offsets[0]) {
    reject(path,
           fmt::format("tensor {}: shape [{}] of {} takes {} bytes, data_offsets give {}", name,
                       fmt::join(shape, ", "), entry.dtype, bytes, offsets[1] - offsets[0]));
  }
  entry.begin = data_begin + static_cast<std::int64_t>(offsets[0]);
  entry.end = data_begin + static_cast<std::int64_t>(offsets[1]);
  return entry;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path) {
  const std::int64_t total = file_bytes(path);
  std::ifstream file(path, std::ios::binary);
  std::uint64_t header_bytes = 0;
  if (!file.read(reinterpret_cast<char*>(&header_bytes), 8)) {
    reject(path, fmt::format("it has {} bytes, no header", total));
  }
  if (header_bytes > static_cast<std::uint64_t>(std::min(total - 8, kMostHeaderBytes))) {
    reject(path, fmt::format("header of {} bytes in a file of {} bytes (at most {})", header_bytes,
                             total, kMostHeaderBytes));
  }
  std::string text(static_cast<std::size_t>(header_bytes), '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(header_bytes)) ||
      !text.starts_with('{')) {
    reject(path, "its header does not begin with {");
  }
  const nlohmann::json header = parse_header(path, text);
  const std::int64_t data_begin = 8 + static_cast<std::int64_t>(header_bytes);
  for (const auto& [name, json] : header.items()) {
    if (name == kMetadata) {
      try {
        metadata_ = json.get<std::map<std::string, std::string>>();
      } catch (const nlohmann::json::exception& error) {
        reject(path, fmt::format("{}: {}", kMetadata, error.what()));
      }
      continue;
    }
    entries_.push_back(parse_entry(path, name, json, data_begin, total - data_begin));
  }
  std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::int64_t position = data_begin;
  for (const SafetensorsEntry& entry : entries_) {
    if (entry.begin != position) {
      reject(path, fmt::format("tensor {}: expected its bytes from {}, found {} ({})", entry.name,
                               position, entry.begin,
                               entry.begin < position ? "overlaps another tensor" : "a gap"));
    }
    position = entry.end;
  }
  if (position != total) {
    reject(path, fmt::format("its tensors end at byte {}, the file at {}", position, total));
  }
}

void SafetensorsFile::read(const std::string& name, const Tensor& out) const {
  const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const SafetensorsEntry& e) { return e.name == name; });
  if (entry == entries_.end()) {
    throw InputError(fmt::format("{}: no tensor {}", path_.string(), name));
  }
  if (entry->shape != out.shape()) {
    throw InputError(fmt::format("{}: tensor {}: expected the shape [{}], found [{}]",
                                 path_.string(), name, fmt::join(out.shape(), ", "),
                                 fmt::join(entry->shape, ", ")));
  }
  RowType type = RowType::fp32;
  if (entry->dtype == "BF16") {
    type = RowType::bf16;
  } else if (entry->dtype == "F16") {
    type = RowType::fp16;
  } else if (entry->dtype != "F32") {
    throw InputError(fmt::format("{}: tensor {}: expected F32, BF16 or F16, found {}",
                                 path_.string(), name, entry->dtype));
  }
  std::ifstream file(path_, std::ios::binary);
  file.seekg(entry->begin);
  const std::int64_t bytes = entry->end - entry->begin;
  std::vector<std::byte> stored;
  char* target = reinterpret_cast<char*>(out.data<float>());
  if (type != RowType::fp32) {
    stored.resize(static_cast<std::size_t>(bytes));
    target = reinterpret_cast<char*>(stored.data());
  }
  file.read(target, bytes);
  if (!file) throw InputError(fmt::format("{}: tensor {}: truncated", path_.string(), name));
  if (type != RowType::fp32) decode_row(type, stored.data(), out.span<float>());
}

void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  std::int64_t position = 0;
  for (const NamedTensor& named : tensors) {
    if (named.tensor.dtype() != DType::fp32 || named.tensor.device() != Device::cpu ||
        header.contains(named.name)) {
      throw std::logic_error("safetensors: " + named.name + " is not fp32 on the host, or twice");
    }
    const std::int64_t end = position + static_cast<std::int64_t>(named.tensor.bytes());
    header[named.name] = {
        {"dtype", "F32"}, {"shape", named.tensor.shape()}, {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 8 + 63) / 64 * 64 - 8, ' ');  // tensors start on a cache line
  const auto header_bytes = static_cast<std::uint64_t>(text.size());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(&header_bytes), 8);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (const NamedTensor& named : tensors) {
    file.write(reinterpret_cast<const char*>(named.tensor.data<float>()),
               static_cast<std::streamsize>(named.tensor.bytes()));
  }
  file.close();
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be written", path.string()));
}

}  // namespace scone
