#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/tensor.h"

namespace scone {

/// One tensor of a safetensors file: its type as the file names it ("F32", "BF16", ..) and its
/// bytes [begin, end) in the file.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  Shape shape;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// A safetensors file: 8 bytes of header length (little endian), a JSON header, the tensors' bytes.
class SafetensorsFile {
 public:
  /// Reads and checks the whole header: its length against the file's and 100 MB, each key once,
  /// known types, sizes that follow from the shapes, and bytes without gaps, overlaps or rest.
  /// Throws InputError naming file and tensor.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // in order of bytes
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The tensor as fp32. out's shape must be the tensor's. Throws InputError: no such tensor,
  /// another shape, or a type other than F32, BF16, F16.
  void read(const std::string& name, const Tensor& out) const;

 private:
  std::filesystem::path path_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Writes fp32 host tensors in the order given. Names must be distinct. Throws std::runtime_error.
void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace scone
