// The CUDA runtime's functions that our code calls, for the host: device memory is host memory, and
// all work is done when it is given to a stream.

#include "host_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "device_access.h"

namespace {

constexpr std::size_t kAlignment = 256;  // of device memory
std::mutex mutex;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

/// A heap block of exactly so many bytes, so that the sanitizer sees the first one beyond; its
/// bytes are NaN in every type.
void* new_block(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, std::max<std::size_t>(bytes, 1)) != 0) return nullptr;
  std::memset(memory, 0xFF, bytes);
  return memory;
}

cudaError_t allocate(void** memory, std::size_t bytes) {
  *memory = new_block(bytes);
  return remember(*memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

/// Blocks of device memory, which is what copies and kernels of the device may touch.
struct DeviceMemory {
  std::mutex mutex;
  std::map<std::uintptr_t, std::size_t> blocks;
  int accesses = 0;  // DeviceAccess objects that there are

  /// What the sanitizer lets the program touch.
  static void set_open([[maybe_unused]] std::uintptr_t begin, [[maybe_unused]] std::size_t bytes,
                       [[maybe_unused]] bool open) {
#if defined(__SANITIZE_ADDRESS__)
    if (open)
      __asan_unpoison_memory_region(reinterpret_cast<void*>(begin), bytes);
    else
      __asan_poison_memory_region(reinterpret_cast<void*>(begin), bytes);
#endif
  }
  void set_all_open(bool open) const {
    for (const auto& [begin, bytes] : blocks) set_open(begin, bytes, open);
  }
};
DeviceMemory& device_memory() {
  static auto* const memory = new DeviceMemory;  // outlives what other statics hold of it
  return *memory;
}

/// Whether [address, address + bytes) lies on the side that a copy says.
bool is_right(const void* address, std::size_t bytes, bool device) {
  DeviceMemory& memory = device_memory();
  const std::lock_guard lock(memory.mutex);
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  auto block = memory.blocks.upper_bound(begin);
  if (block == memory.blocks.begin()) return !device;
  --block;
  const bool starts = begin < block->first + block->second;
  return device ? starts && begin + bytes <= block->first + block->second : !starts;
}

cudaError_t query() {
  const std::lock_guard lock(mutex);
  cuda_on_host::RuntimeState& state = cuda_on_host::runtime_state();
  if (state.work_error != cudaSuccess) return remember(state.work_error);
  if (state.polls_until_done == 0) return cudaSuccess;
  --state.polls_until_done;
  return remember(cudaErrorNotReady);
}

}  // namespace

namespace cuda_on_host {
RuntimeState& runtime_state() {
  static RuntimeState state;
  return state;
}

DeviceAccess::DeviceAccess() {
  DeviceMemory& memory = device_memory();
  const std::lock_guard lock(memory.mutex);
  if (memory.accesses++ == 0) memory.set_all_open(true);
}
DeviceAccess::~DeviceAccess() {
  DeviceMemory& memory = device_memory();
  const std::lock_guard lock(memory.mutex);
  if (--memory.accesses == 0) memory.set_all_open(false);
}
}  // namespace cuda_on_host

using cuda_on_host::runtime_state;

struct CUstream_st {};
struct CUevent_st {};

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "another error";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = runtime_state().devices;
  return remember(runtime_state().count_error);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = runtime_state().driver_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = runtime_state().runtime_version;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const cuda_on_host::RuntimeState& state = runtime_state();
  if (device < 0 || device >= state.devices) return remember(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "CUDA on the host");
  properties->major = state.major;
  properties->minor = state.minor;
  properties->multiProcessorCount = state.multiprocessors;
  properties->totalGlobalMem = state.total_memory;
  properties->sharedMemPerBlockOptin = 227 * 1024;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int bytes, int device) {
  if (device < 0 || device >= runtime_state().devices) return remember(cudaErrorInvalidDevice);
  constexpr char kBusId[] = "0000:00:00.0";
  if (bytes < static_cast<int>(sizeof kBusId)) return remember(cudaErrorInvalidValue);
  std::memcpy(bus_id, kBusId, sizeof kBusId);
  bus_id[6] = static_cast<char>('0' + device % 10);
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return remember(device >= 0 && device < runtime_state().devices ? cudaSuccess
                                                                  : cudaErrorInvalidDevice);
}
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total) {
  *free_bytes = runtime_state().free_memory;
  *total = runtime_state().total_memory;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = nullptr;
  if (bytes > runtime_state().free_memory) return remember(cudaErrorMemoryAllocation);
  const cudaError_t error = allocate(memory, bytes);
  if (error != cudaSuccess) return error;
  DeviceMemory& all = device_memory();
  const std::lock_guard lock(all.mutex);
  const auto begin = reinterpret_cast<std::uintptr_t>(*memory);
  all.blocks[begin] = bytes;
  DeviceMemory::set_open(begin, bytes, all.accesses > 0);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  DeviceMemory& all = device_memory();
  const std::lock_guard lock(all.mutex);
  const auto block = all.blocks.find(reinterpret_cast<std::uintptr_t>(memory));
  if (block == all.blocks.end()) return remember(cudaErrorInvalidValue);
  DeviceMemory::set_open(block->first, block->second, true);
  all.blocks.erase(block);
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return allocate(memory, bytes); }
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t) {
  if (bytes == 0) return cudaSuccess;
  const bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind != cudaMemcpyDefault &&
      !(is_right(target, bytes, to) && is_right(source, bytes, from))) {
    return remember(cudaErrorInvalidValue);
  }
  const cuda_on_host::DeviceAccess access;
  std::memmove(target, source, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* target, int value, std::size_t bytes, cudaStream_t) {
  if (bytes == 0) return cudaSuccess;
  if (!is_right(target, bytes, true)) return remember(cudaErrorInvalidValue);
  const cuda_on_host::DeviceAccess access;
  std::memset(target, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return query(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) {
  ++runtime_state().event_queries;
  return query();
}
