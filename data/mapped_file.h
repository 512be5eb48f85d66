#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace scone {

/// A whole file mapped read-only (RAII). An empty file has no bytes and no mapping.
class MappedFile {
 public:
  /// Throws InputError: it cannot be opened or mapped.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(bytes_); }
  std::span<const std::byte> all() const { return {data_, bytes_}; }

  /// Begins reading a part into the page cache, as one request, and does not wait for it.
  void will_read(std::int64_t offset, std::int64_t bytes) const;
  /// Whether all pages of a part are in the page cache. True where the system does not tell.
  bool is_cached(std::int64_t offset, std::int64_t bytes) const;

 private:
  /// The pages that a part lies on.
  std::span<std::byte> pages(std::int64_t offset, std::int64_t bytes) const;

  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace scone
