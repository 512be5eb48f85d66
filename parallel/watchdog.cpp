#include "parallel/watchdog.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

#include "parallel/collective.h"
#include "parallel/communicator.h"

namespace scone {

using Clock = std::chrono::steady_clock;

/// One wait. A thread takes a free slot by `taken` alone; the mutex is for the watchdog, which
/// reads the communicator's members while it holds it, so that the wait cannot end meanwhile.
struct WaitSlot {
  std::atomic<bool> taken = false;
  std::mutex mutex;
  const Communicator* communicator = nullptr;  // null: nobody waits
  const char* collective = nullptr;
  const char* phase = nullptr;
  Clock::time_point since;
  std::function<bool()> over;
};

namespace {

thread_local const char* current_phase = nullptr;

/// Slots in blocks, of which more are added, and never removed, as more threads wait at once.
struct SlotBlock {
  std::array<WaitSlot, 64> slots;
  std::atomic<SlotBlock*> next = nullptr;
};

SlotBlock& first_block() {
  // Never destroyed: threads that outlive main's end may still wait.
  static auto* block = new SlotBlock;
  return *block;
}

WaitSlot* take_slot() {
  // A thread mostly gets back the slot that it used before.
  thread_local WaitSlot* last = nullptr;
  if (last != nullptr && !last->taken.exchange(true)) return last;
  for (SlotBlock* block = &first_block();;) {
    for (auto& slot : block->slots) {
      if (slot.taken.load(std::memory_order_relaxed) || slot.taken.exchange(true)) continue;
      return last = &slot;
    }
    SlotBlock* next = block->next.load();
    if (next == nullptr) {
      auto added = std::make_unique<SlotBlock>();
      if (block->next.compare_exchange_strong(next, added.get())) next = added.release();
    }
    block = next;
  }
}

}  // namespace

Phase::Phase(const char* name) : outer_(std::exchange(current_phase, name)) {}
Phase::~Phase() { current_phase = outer_; }

CollectiveScope::CollectiveScope(const Communicator& communicator, const char* collective,
                                 std::function<bool()> over)
    : slot_(take_slot()) {
  std::lock_guard lock(slot_->mutex);
  slot_->communicator = &communicator;
  slot_->collective = collective;
  slot_->phase = current_phase;
  slot_->since = Clock::now();
  slot_->over = std::move(over);
}

CollectiveScope::~CollectiveScope() {
  {
    std::lock_guard lock(slot_->mutex);
    slot_->communicator = nullptr;
  }
  slot_->taken.store(false, std::memory_order_release);
}

struct Watchdog::State {
  std::chrono::duration<double> timeout;
  std::function<void(const std::string&)> on_timeout;
  std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;
  std::thread thread;

  static std::atomic<bool> exists;

  void watch() {
    const auto interval = std::min(std::chrono::duration<double>(1.0), timeout / 8);
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, interval, [&] { return stopping; })) {
      const auto message = overdue();
      if (!message) continue;
      lock.unlock();
      on_timeout(*message);
      return;
    }
  }

  /// What is wrong with the wait that has lasted longest, where that is too long.
  std::optional<std::string> overdue() const {
    std::optional<std::string> message;
    std::chrono::duration<double> longest = timeout;
    for (SlotBlock* block = &first_block(); block != nullptr; block = block->next.load())
      for (auto& slot : block->slots) {
        std::lock_guard lock(slot.mutex);
        if (slot.communicator == nullptr) continue;
        const std::chrono::duration<double> waited = Clock::now() - slot.since;
        if (waited <= longest || (slot.over && slot.over())) continue;
        longest = waited;
        message = describe(slot, waited.count());
      }
    return message;
  }

  std::string describe(const WaitSlot& slot, double waited) const {
    const Communicator& group = *slot.communicator;
    const std::string phase =
        slot.phase == nullptr ? std::string() : fmt::format(", phase \"{}\"", slot.phase);
    return fmt::format(
        "rank {} has waited {:.3g} s in {} of {}{}; parallel.timeout is {:g} s. A rank of that "
        "group hangs or is gone: look at its own log, or start with --hang-rank to attach a "
        "debugger",
        world_rank(group), waited, slot.collective, describe_group(group), phase, timeout.count());
  }
};

std::atomic<bool> Watchdog::State::exists = false;

Watchdog::Watchdog(std::chrono::duration<double> timeout,
                   std::function<void(const std::string& message)> on_timeout)
    : state_(std::make_unique<State>()) {
  if (State::exists.exchange(true)) throw std::logic_error("a process has one Watchdog at a time");
  state_->timeout = timeout;
  state_->on_timeout = std::move(on_timeout);
  state_->thread = std::thread([state = state_.get()] { state->watch(); });
}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
  State::exists = false;
}

}  // namespace scone
