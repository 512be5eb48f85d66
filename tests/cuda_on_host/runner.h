#pragma once

#include <array>
#include <bit>
#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <sstream>
#include <vector>

#include "block_runner.h"
#include "include/cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_host {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kSharedAlignment = 256;
constexpr unsigned kMostWarps = kMostThreads / kWarpSize;

struct Abandoned {};  // unwinds the other threads of a block in which one failed

inline std::string place_of(const std::source_location& where) {
  std::ostringstream text;
  text << where.file_name() << ':' << where.line();
  return text.str();
}

inline bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

/// A stack on which threads of kernels run, kept from block to block.
struct Worker {
  boost::context::fiber fiber;  // where it goes on; empty while it runs
  unsigned thread = 0;          // the thread that it runs, and waits with
#if defined(__SANITIZE_ADDRESS__)
  const void* stack_bottom = nullptr;
  std::size_t stack_size = 0;
#endif
};

enum class State : std::uint8_t { unstarted, ready, at_barrier, in_warp, done };

struct Thread {
  State state = State::unstarted;
  Worker* worker = nullptr;
  uint3 index{};
  std::source_location place;  // of what it waits for
  WarpOperation operation = WarpOperation::sync;
  std::uint32_t mask = 0;
  std::uint64_t value = 0, result = 0;
  unsigned source = 0;
};

struct SharedBlock {
  const void* tag;
  std::size_t bytes;
  std::unique_ptr<void, decltype(&std::free)> memory;
};

inline std::unique_ptr<void, decltype(&std::free)> allocate(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kSharedAlignment, bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xFF, bytes);
  return {memory, &std::free};
}

std::mutex names_mutex;
inline std::set<std::string>& names() {
  static std::set<std::string> all;
  return all;
}

/// How a block's threads are chosen. A missing barrier shows where one warp runs far ahead or far
/// behind, others where all are mixed.
enum class Policy : std::uint8_t { mixed, one_warp_ahead, one_warp_behind };

class Runner {
 public:
  Runner() : random_(order_seed() * 0x9E3779B97F4A7C15ULL | 1U) {}
  ~Runner();
  void run(std::string_view kernel, Extent grid, Extent block, std::size_t dynamic_shared_bytes,
           void (*body)(const void*), const void* context);
  void block_barrier(const std::source_location& where);
  std::uint64_t warp_operation(WarpOperation operation, std::uint32_t mask, std::uint64_t value,
                               unsigned source, const std::source_location& where);
  unsigned lane() const { return current_ % kWarpSize; }
  [[noreturn]] void fail(const std::string& what, const std::source_location* where);
  void* static_shared(const void* tag, std::size_t bytes);
  void* dynamic_shared();

 private:
  std::uint64_t random() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_ * 0x2545F4914F6CDD1DULL;
  }
  std::uint32_t random_below(std::uint32_t end) {
    return static_cast<std::uint32_t>(((random() >> 32) * end) >> 32);
  }
  unsigned random_bit(std::uint32_t bits) {
    const unsigned turn = random_below(32);
    return (static_cast<unsigned>(std::countr_zero(std::rotr(bits, static_cast<int>(turn)))) +
            turn) %
           32;
  }
  void run_block();
  bool pick(unsigned& thread);
  void make_ready(unsigned thread);
  void enter(unsigned thread);
  void wait();
  void run_worker(Worker& worker);
  void resume(Worker& worker);
  void switch_to_scheduler(Worker& worker);
  Worker& free_worker();
  void abandon();
  std::string deadlock() const;
  std::string describe(unsigned thread) const;
  std::uint64_t warp_result(const Thread& thread, unsigned warp);

  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> free_;
  boost::context::fiber scheduler_;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_bottom_ = nullptr;
  std::size_t scheduler_size_ = 0;
#endif
  std::uint64_t random_;
  bool running_ = false, quit_ = false, abandoned_ = false;
  std::exception_ptr error_;

  // Of the launch.
  std::string_view kernel_;
  void (*body_)(const void*) = nullptr;
  const void* context_ = nullptr;
  std::size_t dynamic_bytes_ = 0;
  std::vector<SharedBlock> shared_;  // [0]: the dynamic one

  // Of the block.
  std::array<Thread, kMostThreads> threads_;
  unsigned thread_count_ = 0, warp_count_ = 0, current_ = 0, done_ = 0;
  std::array<std::uint32_t, kMostWarps> runnable_{};  // lanes unstarted or ready
  std::array<std::uint32_t, kMostWarps> in_warp_{};   // lanes that wait for others of their warp
  std::uint32_t runnable_warps_ = 0;
  Policy policy_ = Policy::mixed;
  unsigned policy_warp_ = 0;
  bool has_next_ = false;
  unsigned next_ = 0;
  unsigned at_barrier_ = 0;
  unsigned first_at_barrier_ = 0, first_done_ = 0;
};

Runner& runner() {
  static thread_local Runner instance;
  return instance;
}

Runner::~Runner() {
  quit_ = true;
  for (Worker* worker : free_) resume(*worker);
}

}  // namespace cuda_on_host
