#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace scone {

class Communicator;
struct WaitSlot;

/// Names what this thread is doing ("main model backward"), for the watchdog's message, until it
/// goes. They nest. name must live as long (a literal).
class Phase {
 public:
  explicit Phase(const char* name);
  ~Phase();
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;

 private:
  const char* outer_;
};

/// Every wait of a communicator for other ranks stands in one of these. collective must live as
/// long (a literal), the communicator too. Of a collective that a device waits in, `over` says
/// whether it has ended although the scope is still there; the watchdog's thread asks it before it
/// tells of the wait. It throws nothing.
class CollectiveScope {
 public:
  CollectiveScope(const Communicator& communicator, const char* collective,
                  std::function<bool()> over = nullptr);
  ~CollectiveScope();
  CollectiveScope(const CollectiveScope&) = delete;
  CollectiveScope& operator=(const CollectiveScope&) = delete;

 private:
  WaitSlot* slot_;
};

/// A thread that looks once a second (more often where the timeout is short) whether some wait of
/// this process lasts longer than `timeout`, and then calls on_timeout(message) from that thread,
/// once. The message says the rank, how long, which collective, of which group with which world
/// ranks, in which phase. One at a time in a process, else std::logic_error. Its destructor waits
/// for on_timeout where that is running.
class Watchdog {
 public:
  Watchdog(std::chrono::duration<double> timeout,
           std::function<void(const std::string& message)> on_timeout);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
