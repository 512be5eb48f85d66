#include <algorithm>
#include <numeric>

#include "device_access.h"
#include "runner.h"

constinit thread_local uint3 threadIdx{};
constinit thread_local uint3 blockIdx{};
constinit thread_local dim3 blockDim{};
constinit thread_local dim3 gridDim{};

namespace cuda_on_host {

std::string Runner::describe(unsigned thread) const {
  std::ostringstream text;
  const uint3& index = threads_[thread].index;
  text << "thread (" << index.x << ", " << index.y << ", " << index.z << ')';
  return text.str();
}

void Runner::fail(const std::string& what, const std::source_location* where) {
  std::ostringstream text;
  text << kernel_ << ", block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << "), "
       << describe(current_);
  if (where != nullptr) text << ", " << place_of(*where);
  text << ": " << what << " (SCONE_CUDA_ON_HOST_SEED=" << order_seed() << ')';
  throw BlockError(text.str());
}

bool Runner::pick(unsigned& thread) {
  if (runnable_warps_ == 0) return false;
  std::uint32_t warps = runnable_warps_;
  const std::uint32_t special = 1U << policy_warp_;
  if (policy_ == Policy::one_warp_behind && warps != special) warps &= ~special;
  if (policy_ == Policy::one_warp_ahead) {
    if ((warps & special) != 0) {
      warps = special;
    } else {
      policy_warp_ = random_bit(warps);
      warps = 1U << policy_warp_;
    }
  }
  const unsigned warp = random_bit(warps);
  const unsigned lane = random_bit(runnable_[warp]);
  runnable_[warp] &= ~(1U << lane);
  if (runnable_[warp] == 0) runnable_warps_ &= ~(1U << warp);
  thread = warp * kWarpSize + lane;
  return true;
}

void Runner::make_ready(unsigned thread) {
  threads_[thread].state = State::ready;
  runnable_[thread / kWarpSize] |= 1U << (thread % kWarpSize);
  runnable_warps_ |= 1U << (thread / kWarpSize);
}

void Runner::enter(unsigned thread) {
  current_ = thread;
  threadIdx = threads_[thread].index;
}

void Runner::resume(Worker& worker) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, worker.stack_bottom, worker.stack_size);
#endif
  worker.fiber = std::move(worker.fiber).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Runner::switch_to_scheduler(Worker& worker) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, scheduler_bottom_, scheduler_size_);
#else
  (void)worker;
#endif
  scheduler_ = std::move(scheduler_).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_bottom_, &scheduler_size_);
  (void)worker;
#endif
}

/// Leaves the processor to others until the thread, which is ready or waits, is chosen again.
void Runner::wait() {
  const unsigned me = current_;
  Worker& worker = *threads_[me].worker;
  has_next_ = pick(next_);
  if (has_next_ && next_ == me) {
    has_next_ = false;
    return;
  }
  switch_to_scheduler(worker);
  if (abandoned_) throw Abandoned();
}

/// A worker's life: threads not yet started, one after another; a thread that waits keeps it.
void Runner::run_worker(Worker& worker) {
  while (true) {
    while (!quit_) {
      threads_[worker.thread].worker = &worker;
      enter(worker.thread);
      bool failed = false;
      try {
        body_(context_);
        if (at_barrier_ > 0) {
          fail("this thread ends while " + describe(first_at_barrier_) +
                   " waits at the barrier of " + place_of(threads_[first_at_barrier_].place),
               nullptr);
        }
      } catch (const Abandoned&) {
        failed = true;
      } catch (...) {
        if (error_ == nullptr) error_ = std::current_exception();
        failed = true;
      }
      if (done_ == 0) first_done_ = worker.thread;
      threads_[worker.thread].state = State::done;
      ++done_;
      if (failed || !pick(next_)) break;
      if (threads_[next_].state != State::unstarted) {
        has_next_ = true;
        break;
      }
      worker.thread = next_;
    }
    if (quit_) return;
    free_.push_back(&worker);
    switch_to_scheduler(worker);
  }
}

Worker& Runner::free_worker() {
  if (free_.empty()) {
    workers_.push_back(std::make_unique<Worker>());
    Worker& made = *workers_.back();
    boost::context::protected_fixedsize_stack stacks(kStackBytes);
    boost::context::stack_context stack = stacks.allocate();
#if defined(__SANITIZE_ADDRESS__)
    made.stack_bottom = static_cast<char*>(stack.sp) - stack.size;
    made.stack_size = stack.size;
#endif
    made.fiber = boost::context::fiber(
        std::allocator_arg, boost::context::preallocated(stack.sp, stack.size, stack), stacks,
        [this, &made](boost::context::fiber&& scheduler) {
#if defined(__SANITIZE_ADDRESS__)
          __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom_, &scheduler_size_);
#endif
          scheduler_ = std::move(scheduler);
          run_worker(made);
#if defined(__SANITIZE_ADDRESS__)
          __sanitizer_start_switch_fiber(nullptr, scheduler_bottom_, scheduler_size_);
#endif
          return std::move(scheduler_);
        });
    return made;
  }
  Worker* worker = free_.back();
  free_.pop_back();
  return *worker;
}

/// Unwinds every thread that waits.
void Runner::abandon() {
  abandoned_ = true;
  for (unsigned i = 0; i < thread_count_; ++i) {
    if (threads_[i].state != State::unstarted && threads_[i].state != State::done) {
      resume(*threads_[i].worker);
    }
  }
  abandoned_ = false;
}

std::string Runner::deadlock() const {
  std::ostringstream text;
  text << "no thread can go on:";
  int listed = 0;
  for (unsigned i = 0; i < thread_count_ && listed < 8; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state != State::at_barrier && thread.state != State::in_warp) continue;
    ++listed;
    text << ' ' << describe(i) << " waits at " << place_of(thread.place);
    if (thread.state == State::in_warp)
      text << " for lanes 0x" << std::hex << thread.mask << std::dec;
    text << ';';
  }
  text << ' ' << done_ << " of " << thread_count_ << " threads are done";
  return text.str();
}

void Runner::run_block() {
  done_ = at_barrier_ = 0;
  has_next_ = false;
  error_ = nullptr;
  runnable_warps_ = 0;
  unsigned thread = 0;
  for (unsigned z = 0; z < blockDim.z; ++z) {
    for (unsigned y = 0; y < blockDim.y; ++y) {
      for (unsigned x = 0; x < blockDim.x; ++x, ++thread) {
        make_ready(thread);
        threads_[thread].state = State::unstarted;
        threads_[thread].index = {x, y, z};
      }
    }
  }
  in_warp_.fill(0);
  policy_ = static_cast<Policy>(random_below(3));
  policy_warp_ = random_below(warp_count_);
  for (const SharedBlock& block : shared_) std::memset(block.memory.get(), 0xFF, block.bytes);
  while (done_ < thread_count_ && error_ == nullptr) {
    unsigned chosen = next_;
    if (!has_next_ && !pick(chosen)) {
      try {
        fail(deadlock(), nullptr);
      } catch (...) {
        error_ = std::current_exception();
      }
      break;
    }
    has_next_ = false;
    if (threads_[chosen].state == State::unstarted) {
      Worker& worker = free_worker();
      worker.thread = chosen;
      resume(worker);
    } else {
      enter(chosen);
      resume(*threads_[chosen].worker);
    }
  }
  if (error_ != nullptr) {
    abandon();
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void Runner::run(std::string_view kernel, Extent grid, Extent block,
                 std::size_t dynamic_shared_bytes, void (*body)(const void*), const void* context) {
  if (running_) throw std::logic_error("cuda_on_host: a kernel launches a kernel");
  {
    const std::lock_guard lock(names_mutex);
    names().emplace(kernel);
  }
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kMostThreads || blocks == 0 || blocks >> 32U != 0) {
    std::ostringstream text;
    text << kernel << ": " << blocks << " blocks of " << threads << " threads; a block has 1 to "
         << kMostThreads << ", and this runner takes 1 to 2^32 - 1 blocks";
    throw std::invalid_argument(text.str());
  }
  kernel_ = kernel;
  body_ = body;
  context_ = context;
  dynamic_bytes_ = dynamic_shared_bytes;
  gridDim = dim3(grid.x, grid.y, grid.z);
  blockDim = dim3(block.x, block.y, block.z);
  thread_count_ = static_cast<unsigned>(threads);
  warp_count_ = (thread_count_ + kWarpSize - 1) / kWarpSize;
  shared_.clear();
  shared_.push_back({nullptr, dynamic_bytes_, allocate(std::max<std::size_t>(dynamic_bytes_, 1))});
  std::vector<std::uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0U);
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random_below(static_cast<std::uint32_t>(i))]);
  }
  running_ = true;
  struct Ended {
    Runner& runner;
    ~Ended() {
      runner.running_ = false;
      runner.shared_.clear();
    }
  } const ended{*this};
  for (const std::uint32_t number : order) {
    blockIdx = {number % grid.x, number / grid.x % grid.y,
                static_cast<unsigned>(number / (std::uint64_t{grid.x} * grid.y))};
    run_block();
  }
}

void Runner::block_barrier(const std::source_location& where) {
  Thread& thread = threads_[current_];
  if (done_ > 0) {
    fail("a barrier that not all threads reach: " + describe(first_done_) + " has ended", &where);
  }
  if (at_barrier_ == 0) {
    first_at_barrier_ = current_;
  } else if (!same_place(threads_[first_at_barrier_].place, where)) {
    fail("a barrier that not all threads reach: " + describe(first_at_barrier_) + " waits at " +
             place_of(threads_[first_at_barrier_].place),
         &where);
  }
  thread.place = where;
  thread.state = State::at_barrier;
  if (++at_barrier_ == thread_count_) {
    at_barrier_ = 0;
    for (unsigned i = 0; i < thread_count_; ++i) make_ready(i);
  }
  wait();
}

std::uint64_t Runner::warp_result(const Thread& thread, unsigned warp) {
  Thread* lanes = threads_.data() + std::size_t{warp} * kWarpSize;
  std::uint64_t result = 0;
  switch (thread.operation) {
    case WarpOperation::sync:
      break;
    case WarpOperation::shuffle:
      result = lanes[thread.source].value;
      break;
    case WarpOperation::ballot:
      for (unsigned lane = 0; lane < kWarpSize; ++lane) {
        if ((thread.mask >> lane & 1U) == 0) continue;
        result |= std::uint64_t{lanes[lane].value != 0 ? 1U : 0U} << lane;
      }
  }
  return result;
}

std::uint64_t Runner::warp_operation(WarpOperation operation, std::uint32_t mask,
                                     std::uint64_t value, unsigned source,
                                     const std::source_location& where) {
  const unsigned warp = current_ / kWarpSize, lane = current_ % kWarpSize;
  const unsigned lanes = std::min(kWarpSize, thread_count_ - warp * kWarpSize);
  if ((mask >> lane & 1U) == 0) fail("the mask does not name this lane", &where);
  if (lanes < kWarpSize && mask >> lanes != 0) {
    fail("the mask names lanes that the block does not have", &where);
  }
  if (operation == WarpOperation::shuffle && (mask >> source & 1U) == 0) {
    fail("a shuffle from lane " + std::to_string(source) + ", which the mask does not name",
         &where);
  }
  Thread& thread = threads_[current_];
  const std::uint32_t others = in_warp_[warp] & mask;
  if (others != 0) {
    const Thread& other =
        threads_[warp * kWarpSize + static_cast<unsigned>(std::countr_zero(others))];
    if (other.mask != mask || other.operation != operation || !same_place(other.place, where)) {
      fail("another lane of the mask is in another warp operation, at " + place_of(other.place),
           &where);
    }
  }
  thread.operation = operation;
  thread.mask = mask;
  thread.value = value;
  thread.source = source;
  thread.place = where;
  thread.state = State::in_warp;
  in_warp_[warp] |= 1U << lane;
  if ((in_warp_[warp] & mask) == mask) {
    in_warp_[warp] &= ~mask;
    for (std::uint32_t left = mask; left != 0; left &= left - 1) {
      const unsigned member = warp * kWarpSize + static_cast<unsigned>(std::countr_zero(left));
      threads_[member].result = warp_result(threads_[member], warp);
      make_ready(member);
    }
  }
  wait();
  return thread.result;
}

void* Runner::static_shared(const void* tag, std::size_t bytes) {
  for (const SharedBlock& block : shared_) {
    if (block.tag == tag) return block.memory.get();
  }
  shared_.push_back({tag, bytes, allocate(bytes)});
  return shared_.back().memory.get();
}

void* Runner::dynamic_shared() { return shared_.front().memory.get(); }

std::uint64_t order_seed() {
  static const std::uint64_t seed = [] {
    const char* text = std::getenv("SCONE_CUDA_ON_HOST_SEED");
    const std::uint64_t value = text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
    return value;
  }();
  return seed;
}

void run_grid(std::string_view kernel, Extent grid, Extent block, std::size_t dynamic_shared_bytes,
              void (*body)(const void*), const void* context) {
  const DeviceAccess access;
  runner().run(kernel, grid, block, dynamic_shared_bytes, body, context);
}

std::set<std::string> launched_kernels() {
  const std::lock_guard lock(names_mutex);
  return names();
}

void block_barrier(const std::source_location& where) { runner().block_barrier(where); }

std::uint64_t warp_operation(WarpOperation operation, std::uint32_t mask, std::uint64_t value,
                             unsigned source, const std::source_location& where) {
  return runner().warp_operation(operation, mask, value, source, where);
}

unsigned lane_of_thread() { return runner().lane(); }

void fail(const std::string& what, const std::source_location& where) {
  runner().fail(what, &where);
}

void* static_shared(const void* tag, std::size_t bytes) {
  return runner().static_shared(tag, bytes);
}

void* dynamic_shared() { return runner().dynamic_shared(); }

}  // namespace cuda_on_host
