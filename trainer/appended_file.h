#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace scone {

/// A file that a run adds to, step by step. What cannot be written (the disk is full) is kept in
/// memory and written before what comes later, so that a run goes on and the file has neither hole
/// nor half a line; a warning says so, once until the file is whole again.
class AppendedFile {
 public:
  /// Adds to what the file holds; `anew`: to an empty one. Throws std::system_error where it cannot
  /// be opened.
  AppendedFile(std::filesystem::path path, bool anew);
  /// Tries once more, and warns of what is lost.
  ~AppendedFile();
  AppendedFile(const AppendedFile&) = delete;
  AppendedFile& operator=(const AppendedFile&) = delete;

  void add(std::string_view bytes);

 private:
  /// Writes as much as can be; 0, or the error that ended it.
  int write_waiting();

  std::filesystem::path path_;
  int descriptor_;
  std::string waiting_;
  bool failing_ = false;
};

}  // namespace scone
