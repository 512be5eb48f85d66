#pragma once

#include <filesystem>
#include <optional>

#include "data/file_lock.h"

namespace scone {

/// A folder "<name>.tmp" that something is made in, until it is published under its own name. A
/// file in it marks it as unfinished and is locked, so that of two processes that make the same
/// thing the second is refused, where the file system has locks.
class UnfinishedFolder {
 public:
  /// Takes the folder with what it holds, of an interrupted process, or makes an empty one. Throws
  /// InputError where it cannot be made, another process makes it, or something else stands there.
  explicit UnfinishedFolder(std::filesystem::path folder);
  const std::filesystem::path& path() const { return folder_; }

  /// Removes what is in it, but for the mark.
  void clear() const;
  /// Removes it.
  void remove() const;
  /// Puts it in the place of `target`, as publish_folder does, and takes its mark out then.
  void publish(const std::filesystem::path& target, const std::filesystem::path& aside) const;

 private:
  std::filesystem::path folder_;
  std::optional<FileLock> lock_;
};

}  // namespace scone
