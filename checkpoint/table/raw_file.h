#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace scone {

/// A file descriptor with its path (RAII).
class RawFile {
 public:
  /// flags: of open(2). Throws InputError where it cannot be opened.
  RawFile(std::filesystem::path path, int flags);
  ~RawFile();
  RawFile(RawFile&& other) noexcept;
  RawFile& operator=(RawFile&&) = delete;

  int descriptor() const { return descriptor_; }
  const std::filesystem::path& path() const { return path_; }
  std::int64_t bytes() const;
  /// Fills `out` from `offset` on. Throws std::runtime_error where reading fails or the file ends.
  void read(std::int64_t offset, std::span<std::byte> out) const;
  /// At the end. Throws std::runtime_error.
  void write(std::span<const std::byte> bytes) const;
  void sync() const;
  /// Throws std::runtime_error: cannot `action`, for a reason of errno.
  [[noreturn]] void fail(const char* action, int error) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace scone
