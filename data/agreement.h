#pragma once

#include <exception>
#include <functional>
#include <mutex>

#include "parallel/communicator.h"

namespace scone {

/// Collective: calls `part`, which calls no collective. Where it throws on any rank, this throws on
/// all of them, with the message of the lowest such rank: InputError if that was one, else
/// std::runtime_error. So no rank waits for one that failed, and all can clean up.
void agree(Communicator& communicator, const std::function<void()>& part);

/// Keeps the first exception of a parallel loop's threads, which must not leave the loop.
class LoopErrors {
 public:
  template <class Body>
  void guard(const Body& body) noexcept {
    try {
      body();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

}  // namespace scone
