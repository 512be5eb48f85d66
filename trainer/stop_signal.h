#pragma once

#include <chrono>
#include <csignal>
#include <thread>

namespace scone {

/// From construction to destruction SIGTERM, SIGUSR1 and SIGINT set a flag instead of ending the
/// process; SIGINT not where it is ignored, as in a shell's background job.
/// What comes within two seconds of the first is the same wish to stop, told by several: Slurm, for
/// one, signals the ranks and the batch script, which hands it on. A later one ends the process at
/// once. That holds after the destruction too, once a signal has come: what is saved is not to be
/// reported as killed.
///
/// No thread that computes takes the signal: a handler's frame goes where the stack pointer is, and
/// not all libraries keep that on the thread's stack. So the constructing thread, and those it
/// starts from then on (OpenMP's among them, so construct it before the first parallel region),
/// block the signals, and a thread that only waits takes them. Destroy it on the thread that
/// made it.
class StopSignal {
 public:
  static constexpr std::chrono::seconds one_stop{2};

  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  /// The signal that came; 0: none yet.
  int received() const;

 private:
  sigset_t signals_{};      // that are taken
  sigset_t mask_before_{};  // of the constructing thread
  std::jthread taker_;
};

}  // namespace scone
