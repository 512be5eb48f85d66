#include "trainer/stop_signal.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <ctime>
#include <mutex>
#include <stop_token>

namespace scone {
namespace {

std::atomic<int> received_signal = 0;  // set by one thread, read by others
std::atomic<std::int64_t> received_at = 0;
static_assert(std::atomic<int>::is_always_lock_free &&
                  std::atomic<std::int64_t>::is_always_lock_free,
              "a signal handler sets them");

/// Nanoseconds of the monotonic clock, whose functions of <chrono> a signal handler may not call.
std::int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void on_signal(int signal) {
  if (received_signal == 0) {
    received_at = now();
    received_signal = signal;
  } else if (now() - received_at >= std::chrono::nanoseconds(StopSignal::one_stop).count()) {
    // This thread has it blocked until the handler returns, and then ends the process.
    std::signal(signal, SIG_DFL);
    raise(signal);
  }
}

constexpr int kSignals[] = {SIGTERM, SIGUSR1, SIGINT};

/// Those of kSignals that are taken.
sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kSignals) {
    struct sigaction action {};
    sigaction(signal, nullptr, &action);
    if (signal != SIGINT || action.sa_handler != SIG_IGN) sigaddset(&set, signal);
  }
  return set;
}

/// Gives the signals of a set a handler.
void handle(const sigset_t& set, void (*handler)(int)) {
  for (const int signal : kSignals)
    if (sigismember(&set, signal) == 1) std::signal(signal, handler);
}

/// Takes the signals until it is asked to stop.
void wait_for_signals(const std::stop_token& stop, const sigset_t& set) {
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  std::mutex mutex;
  std::condition_variable_any asked;
  std::unique_lock lock(mutex);
  asked.wait(lock, stop, [] { return false; });
}

}  // namespace

StopSignal::StopSignal() : signals_(stop_signals()) {
  received_signal = 0;
  received_at = 0;
  pthread_sigmask(SIG_BLOCK, &signals_, &mask_before_);
  handle(signals_, on_signal);
  taker_ = std::jthread(wait_for_signals, signals_);
}

StopSignal::~StopSignal() {
  taker_ = std::jthread();  // has ended: what is sent from here on waits for the mask
  if (received_signal == 0) handle(signals_, SIG_DFL);
  pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
}

int StopSignal::received() const { return received_signal; }

}  // namespace scone
