#include "trainer/stop_signal.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stop_token>

namespace scone {
namespace {

std::atomic<int> received_signal = 0;  // set by one thread, read by others
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler sets it");

void on_signal(int signal) {
  received_signal = signal;
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGUSR1, SIG_DFL);
}

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGUSR1);
  return set;
}

/// Takes the signals until it is asked to stop.
void wait_for_signals(const std::stop_token& stop) {
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  std::mutex mutex;
  std::condition_variable_any asked;
  std::unique_lock lock(mutex);
  asked.wait(lock, stop, [] { return false; });
}

}  // namespace

StopSignal::StopSignal() {
  received_signal = 0;
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, &mask_before_);
  std::signal(SIGTERM, on_signal);
  std::signal(SIGUSR1, on_signal);
  taker_ = std::jthread(wait_for_signals);
}

StopSignal::~StopSignal() {
  taker_ = std::jthread();  // has ended: what is sent from here on waits for the mask
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGUSR1, SIG_DFL);
  pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
}

int StopSignal::received() const { return received_signal; }

}  // namespace scone
