#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "data/file_lock.h"

namespace scone {

/// A temporary file, written at its end and read anywhere, from several threads. A file of the
/// scratch kind has no name, so that its space comes back however the process ends. Errors of
/// writing (a full disk above all) throw InputError with the space needed and free; errors of
/// reading throw std::runtime_error.
class SpillFile {
 public:
  /// Creates; an existing file is replaced. named: the file stays when the object goes.
  static SpillFile create(const std::filesystem::path& path, bool named);
  /// An existing file, to read. Throws std::runtime_error.
  static SpillFile open(const std::filesystem::path& path);
  ~SpillFile();
  SpillFile(SpillFile&& other) noexcept;
  SpillFile& operator=(SpillFile&&) = delete;

  /// Returns the byte offset at which the bytes now lie.
  std::int64_t append(std::span<const std::byte> bytes);
  void read(std::int64_t offset, std::span<std::byte> bytes) const;
  std::int64_t size() const { return size_.load(); }
  /// What is written is on the disk when this returns.
  void sync();
  int descriptor() const { return descriptor_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  SpillFile(std::filesystem::path path, int descriptor, std::int64_t size)
      : path_(std::move(path)), descriptor_(descriptor), size_(size) {}
  std::filesystem::path path_;
  int descriptor_;
  std::atomic<std::int64_t> size_;
};

/// FOLDER/rank-N, where one rank of one run keeps its temporary files, locked as long as the
/// process lives. When the object goes the folder goes too, with all in it; after a kill the next
/// run that takes it finds what was left. FOLDER goes with the last rank's.
class SpillFolder {
 public:
  /// Creates FOLDER and FOLDER/rank-N where they are missing, and removes folders of ranks >= ranks
  /// that no living process holds. Throws InputError: it cannot be created, another run holds it,
  /// or it holds files of something else.
  SpillFolder(const std::filesystem::path& folder, int rank, int ranks);
  ~SpillFolder();
  SpillFolder(const SpillFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  /// Removes every file but the lock and those named.
  void keep_only(std::span<const std::string> names);
  /// Bytes that may still be written there.
  std::int64_t free_bytes() const;
  /// Names the disk that the folder is on: equal for folders that share one. Unique to the machine.
  std::string disk() const;

 private:
  std::filesystem::path folder_, path_;
  std::unique_ptr<FileLock> lock_;
};

}  // namespace scone
