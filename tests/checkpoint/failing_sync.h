#pragma once

#include <filesystem>

namespace scone {

/// While it lives, fsync of this one file or folder fails (EIO) in this program.
class FailingSync {
 public:
  explicit FailingSync(const std::filesystem::path& path);
  ~FailingSync();
  FailingSync(const FailingSync&) = delete;
  FailingSync& operator=(const FailingSync&) = delete;
};

}  // namespace scone
