#pragma once

#include <filesystem>

namespace scone {

/// A flock on a file, which is made where it is not there; it goes with the process however that
/// ends.
class FileLock {
 public:
  enum class Outcome { held, held_by_another, unsupported };
  /// Does not wait. Throws InputError where the file cannot be opened.
  explicit FileLock(const std::filesystem::path& file);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  /// unsupported: the file system has no such locks, and another process is not known of.
  Outcome outcome() const { return outcome_; }
  /// Removes the file, which must not be held by another, before the lock goes.
  void remove_file();

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
  Outcome outcome_ = Outcome::unsupported;
};

}  // namespace scone
