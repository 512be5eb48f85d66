#pragma once

#include <cstddef>
#include <filesystem>

namespace scone {

/// A whole file mapped read-only. Throws InputError where it cannot be opened or mapped.
class FileMapping {
 public:
  explicit FileMapping(const std::filesystem::path& path);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  const std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace scone
