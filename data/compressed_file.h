#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace scone {

/// The content of a file, decompressed while it is read where it is gzip (any number of members) or
/// Zstandard (any number of frames), told apart by the first bytes. Errors throw InputError naming
/// the file: it cannot be opened, is named .gz or .zst but is not, is damaged or cut.
class CompressedFile {
 public:
  explicit CompressedFile(const std::filesystem::path& path);
  ~CompressedFile();
  CompressedFile(const CompressedFile&) = delete;
  CompressedFile& operator=(const CompressedFile&) = delete;

  /// Fills `out` from its begin and returns the bytes put there: fewer than its size only at the
  /// end of the content.
  std::size_t read(std::span<char> out);
  /// Bytes of the file itself that have been read, for progress.
  std::int64_t file_position() const;
  bool is_compressed() const;
  /// The next read() begins at this byte. For files that are not compressed; throws
  /// std::logic_error for others.
  void seek(std::int64_t offset);

  /// How one format is decoded; one implementation a format.
  class Decoder {
   public:
    virtual ~Decoder() = default;
    virtual std::size_t read(std::span<char> out) = 0;
    virtual std::int64_t file_position() const = 0;
    virtual bool seek(std::int64_t) { return false; }  // whether it can
  };

 private:
  std::unique_ptr<Decoder> decoder_;
  bool compressed_ = false;
};

}  // namespace scone
