#pragma once

namespace scone {

/// From construction to destruction SIGTERM and SIGUSR1 set a flag instead of ending the process; a
/// second such signal ends it at once.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  /// The signal that came; 0: none yet.
  int received() const;
};

}  // namespace scone
