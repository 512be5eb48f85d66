// The CUDA runtime's functions that parallel/cuda calls, for the host, with streams that lag: each
// is a thread that does its work in order, after a pause now and then. What is used before an event
// that it should wait for is seldom right.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "device_access.h"

namespace {

/// Recorded and reached so many times; streams and queries wait for the last record before them.
struct EventState {
  std::mutex mutex;
  std::condition_variable changed;
  std::int64_t recorded = 0, reached = 0;
};
/// Shared with the streams, which may reach an event that is destroyed by then.
using EventHandle = std::shared_ptr<EventState>;

class LaggingStream {
 public:
  explicit LaggingStream(unsigned seed) : generator_(seed), thread_([this] { run(); }) {}
  ~LaggingStream() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  LaggingStream(const LaggingStream&) = delete;
  LaggingStream& operator=(const LaggingStream&) = delete;

  void add(std::function<void()> work) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(work));
    }
    changed_.notify_all();
  }
  bool idle() {
    const std::lock_guard lock(mutex_);
    return queue_.empty() && !busy_;
  }

 private:
  void run() {
    for (;;) {
      std::function<void()> work;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
        if (queue_.empty()) return;
        work = std::move(queue_.front());
        queue_.pop_front();
        busy_ = true;
      }
      if (generator_() % 2 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(generator_() % 1500));
      work();
      const std::lock_guard lock(mutex_);
      busy_ = false;
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool busy_ = false, stopping_ = false;
  std::minstd_rand generator_;
  std::thread thread_;
};

LaggingStream& stream_of(cudaStream_t stream) { return *reinterpret_cast<LaggingStream*>(stream); }
EventHandle& event_of(cudaEvent_t event) { return *reinterpret_cast<EventHandle*>(event); }

cudaError_t allocate(void** memory, std::size_t bytes) {
  void* block = std::malloc(std::max<std::size_t>(bytes, 1));
  if (block == nullptr) return cudaErrorMemoryAllocation;
  std::memset(block, 0xFF, bytes);  // NaN
  *memory = block;
  return cudaSuccess;
}

}  // namespace

// Here the streams touch device memory at any time.
cuda_on_host::DeviceAccess::DeviceAccess() = default;
cuda_on_host::DeviceAccess::~DeviceAccess() = default;

const char* cudaGetErrorString(cudaError_t) { return "error"; }
const char* cudaGetErrorName(cudaError_t) { return "error"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  std::strcpy(properties->name, "lagging host");
  properties->major = 9;
  properties->multiProcessorCount = 1;
  properties->totalGlobalMem = std::size_t{1} << 30;
  properties->sharedMemPerBlockOptin = 227 * 1024;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int bytes, int) {
  std::strncpy(bus_id, "0000:00:00.0", static_cast<std::size_t>(bytes));
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total) {
  *free_bytes = *total = std::size_t{1} << 30;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) { return allocate(memory, bytes); }
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return allocate(memory, bytes); }
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  stream_of(stream).add([=] { std::memcpy(target, source, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  static unsigned seed = 0;
  *stream = reinterpret_cast<cudaStream_t>(new LaggingStream(++seed));
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete &stream_of(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return stream_of(stream).idle() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  EventHandle state = event_of(event);
  std::int64_t awaited = 0;
  {
    const std::lock_guard lock(state->mutex);
    awaited = state->recorded;
  }
  stream_of(stream).add([state, awaited] {
    std::unique_lock lock(state->mutex);
    state->changed.wait(lock, [&] { return state->reached >= awaited; });
  });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new EventHandle(std::make_shared<EventState>()));
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete &event_of(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  EventHandle state = event_of(event);
  std::int64_t record = 0;
  {
    const std::lock_guard lock(state->mutex);
    record = ++state->recorded;
  }
  stream_of(stream).add([state, record] {
    {
      const std::lock_guard lock(state->mutex);
      state->reached = std::max(state->reached, record);
    }
    state->changed.notify_all();
  });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  EventHandle state = event_of(event);
  const std::lock_guard lock(state->mutex);
  return state->reached >= state->recorded ? cudaSuccess : cudaErrorNotReady;
}
