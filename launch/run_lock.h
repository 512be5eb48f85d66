#pragma once

#include <chrono>
#include <filesystem>
#include <string>

namespace scone {

/// Keeps a second run out of a run's folder for as long as it lives: two that write one folder
/// destroy each other's checkpoints. A flock on folder/.lock, which goes with the process however
/// that ends; the file stays, and says who holds it. What only reads the folder needs no lock.
class RunLock {
 public:
  /// Waits up to `patience` for a run that is about to end, such as what a killed mpirun leaves for
  /// a second or two. Throws InputError that names the holder where it goes on, or the file where
  /// it cannot be opened; `key` is the one that names the folder. A file system that refuses flock
  /// gets a warning and no lock. Not collective: rank 0 holds it for all.
  explicit RunLock(const std::filesystem::path& folder,
                   std::chrono::seconds patience = std::chrono::seconds(15),
                   const std::string& key = "run.folder");
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_ = -1;
};

/// Whether a process holds the lock of a folder, this one included.
bool is_locked(const std::filesystem::path& folder);

}  // namespace scone
