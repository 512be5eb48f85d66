#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace scone {

/// XXH3 (64 bits) over bytes that arrive in pieces.
class StreamingChecksum {
 public:
  StreamingChecksum();
  ~StreamingChecksum();
  StreamingChecksum(const StreamingChecksum&) = delete;
  StreamingChecksum& operator=(const StreamingChecksum&) = delete;

  void add(std::span<const std::byte> bytes);
  /// Adds `bytes` bytes of the file from byte `offset`. Throws InputError where the file cannot be
  /// read or ends before.
  void add_file(const std::filesystem::path& path, std::int64_t offset, std::int64_t bytes);
  /// 16 lower-case hex digits of everything added so far.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Size of a file in bytes. Throws InputError where there is no such file.
std::int64_t file_bytes(const std::filesystem::path& path);

/// 16 hex digits of XXH3 over a whole file, read in pieces. Throws InputError.
std::string file_checksum(const std::filesystem::path& path);

}  // namespace scone
