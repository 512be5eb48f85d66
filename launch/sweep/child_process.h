#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace scone {

/// Where a child's output goes. Both may name one file, which is appended to.
struct ChildOutput {
  std::filesystem::path out, error;
};

/// A program that runs beside this one, in a process group of its own, so that the terminal's
/// ctrl-C does not reach it. Where this process is killed the child gets SIGUSR1, at which `scone
/// train` saves and leaves, mpirun passes it on to the ranks, and all else ends.
class ChildProcess {
 public:
  /// Looks the program up in PATH. The environment is this process's as it was started, before MPI
  /// added to it what would make a child take itself for one of its ranks; `environment` is added:
  /// NAME=VALUE. Throws std::runtime_error where no process can be made.
  ChildProcess(const std::vector<std::string>& command, const std::vector<std::string>& environment,
               const ChildOutput& output);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  /// Kills it, and what it started, where it runs.
  ~ChildProcess();

  /// Its exit code, 128 + the signal that ended it, 127 where the program could not be started;
  /// nullopt while it runs.
  std::optional<int> poll();
  int wait();
  void send(int signal) const;
  /// Ends it and all that it started, also what has a process group of its own (mpirun's ranks).
  void kill();

 private:
  pid_t pid_ = -1;
  std::optional<int> code_;
};

}  // namespace scone
