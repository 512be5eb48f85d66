#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace scone {

class Communicator;

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

/// Every wait of a communicator for other ranks stands in one of these.
class CollectiveScope {
 public:
  CollectiveScope(const Communicator& communicator, const char* collective);
  ~CollectiveScope();
  CollectiveScope(const CollectiveScope&) = delete;
  CollectiveScope& operator=(const CollectiveScope&) = delete;

 private:
  std::size_t slot_;
};

/// A thread that looks once a second whether some wait of this process lasts longer than `timeout`,
/// and then calls on_timeout(message), once. The message says the rank, how long, which collective,
/// in which phase, of which group with which world ranks. One at a time in a process.
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
