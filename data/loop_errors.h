#pragma once

#include <exception>
#include <mutex>

namespace scone {

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
