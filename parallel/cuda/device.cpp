#include "parallel/cuda/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <thread>
#include <utility>

#include "parallel/error.h"

#ifndef SCONE_CUDA_ARCHITECTURES
#error \
    "SCONE_CUDA_ARCHITECTURES: the architectures that the kernels are compiled for, \"80-real,90\""
#endif

namespace scone {
namespace {

std::unique_ptr<CudaDevice> opened_device;
std::atomic<int> opened_index = -1, opened_local_rank = -1, opened_world_rank = -1;
thread_local int current_index = -1;

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string gibibytes(std::size_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / static_cast<double>(1U << 30));
}

/// The last error is kept by the runtime until asked for, and would be taken for a later call's.
cudaError_t forgotten(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

[[noreturn]] void throw_out_of_memory(std::size_t needed, std::size_t free, std::size_t total) {
  throw OutOfDeviceMemory(
      fmt::format(
          "{}: out of device memory: {} more needed, {} of {} free: lower "
          "trainer.microbatch_tokens or model.fgram.chunk_nodes, turn on compute.recompute, "
          "or cut the models over more devices (parallel.main.tp, parallel.fgram.tp)",
          cuda::error_place(), gibibytes(needed), gibibytes(free), gibibytes(total)),
      needed, free, total);
}

}  // namespace

namespace cuda {

std::string error_place() {
  if (opened_index < 0) return "no CUDA device open";
  return fmt::format("rank {}, CUDA device {}", opened_world_rank.load(), opened_index.load());
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  forgotten(error);
  throw CudaError(fmt::format("{}: {} failed: {} ({})", error_place(), what,
                              cudaGetErrorString(error), cudaGetErrorName(error)));
}

bool architecture_is_built(std::string_view architectures, int major, int minor) {
  const int wanted = 10 * major + minor;
  while (!architectures.empty()) {
    const std::size_t end = std::min(architectures.find_first_of(",;"), architectures.size());
    const std::string_view entry = architectures.substr(0, end);
    architectures.remove_prefix(std::min(end + 1, architectures.size()));
    int number = 0;
    const auto parsed = std::from_chars(entry.data(), entry.data() + entry.size(), number);
    if (parsed.ec != std::errc()) {
      throw std::logic_error(fmt::format("architecture \"{}\" is no number", entry));
    }
    const std::string_view rest = entry.substr(static_cast<std::size_t>(parsed.ptr - entry.data()));
    const bool bound = !rest.empty() && rest.front() != '-';
    const bool code = !rest.ends_with("-virtual"), ptx = !rest.ends_with("-real");
    if (bound ? wanted == number
              : (code && number / 10 == major && number <= wanted) || (ptx && number <= wanted)) {
      return true;
    }
  }
  return false;
}

std::string unavailable_reason() {
  int count = 0;
  const cudaError_t error = forgotten(cudaGetDeviceCount(&count));
  if (error == cudaSuccess && count > 0) return {};
  int driver = 0, runtime = 0;
  forgotten(cudaDriverGetVersion(&driver));
  forgotten(cudaRuntimeGetVersion(&runtime));
  if (driver == 0) return "the machine has no NVIDIA driver";
  if (error == cudaErrorInsufficientDriver) {
    return fmt::format(
        "the NVIDIA driver is too old: it serves CUDA {}, this build needs {}: update the driver "
        "or "
        "build with an older CUDA toolkit",
        version_text(driver), version_text(runtime));
  }
  if (error == cudaSuccess || error == cudaErrorNoDevice) {
    return "the NVIDIA driver shows no device (is CUDA_VISIBLE_DEVICES set?)";
  }
  return fmt::format("the NVIDIA driver fails: {} ({})", cudaGetErrorString(error),
                     cudaGetErrorName(error));
}

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  cuda_device().make_current();
  void* memory = nullptr;
  const cudaError_t error = forgotten(cudaMalloc(&memory, bytes));
  if (error == cudaErrorMemoryAllocation) {
    throw_out_of_memory(bytes, cuda_device().free_memory(), cuda_device().total_memory());
  }
  check(error, "cudaMalloc");
  data_ = static_cast<std::byte*>(memory);
}

// Errors of the destructors can only be those of earlier work, or of a runtime that is already gone
// at the end of the process; neither can be mended there.
DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}
DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedBuffer::PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  cuda_device().make_current();
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes), "cudaMallocHost");
  data_ = static_cast<std::byte*>(memory);
}
PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}
PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Event::Event() {
  cuda_device().make_current();
  check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}
Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}
Event::Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}
void Event::record(cudaStream_t stream) {
  check(cudaEventRecord(event_, stream), "cudaEventRecord");
}
void Event::hold(cudaStream_t stream) const {
  check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
}
bool Event::done() const {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(error, "cudaEventQuery");
  return true;
}

Stream::Stream() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}
Stream::~Stream() { cudaStreamDestroy(stream_); }

}  // namespace cuda

CudaDevice::CudaDevice(int local_rank, int world_rank) {
  const std::string reason = cuda::unavailable_reason();
  if (!reason.empty()) {
    throw InputError(fmt::format(
        "rank {}: compute.device is cuda, but {}; or set compute.device: cpu", world_rank, reason));
  }
  if (local_rank < 0) throw std::logic_error(fmt::format("local rank {}", local_rank));
  cuda::check(cudaGetDeviceCount(&count_), "cudaGetDeviceCount");
  index_ = local_rank % count_;
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, index_), "cudaGetDeviceProperties");
  name_ = properties.name;
  compute_capability_ = 10 * properties.major + properties.minor;
  if (!cuda::architecture_is_built(SCONE_CUDA_ARCHITECTURES, properties.major, properties.minor)) {
    throw InputError(fmt::format(
        "rank {}: CUDA device {} ({}) has compute capability {}.{}, but scone was built for "
        "architectures {}: build with -DCMAKE_CUDA_ARCHITECTURES={}, or set compute.device: cpu",
        world_rank, index_, name_, properties.major, properties.minor, SCONE_CUDA_ARCHITECTURES,
        compute_capability_));
  }
  multiprocessors_ = properties.multiProcessorCount;
  total_memory_ = properties.totalGlobalMem;
  shared_memory_per_block_ = properties.sharedMemPerBlockOptin;
  char bus_id[32] = {};
  cuda::check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, index_), "cudaDeviceGetPCIBusId");
  bus_id_ = bus_id;
  cuda::check(cudaSetDevice(index_), "cudaSetDevice");
  current_index = index_;
  compute_ = std::make_unique<cuda::Stream>();
  communication_ = std::make_unique<cuda::Stream>();
  copy_ = std::make_unique<cuda::Stream>();
}

std::size_t CudaDevice::free_memory() const {
  make_current();
  std::size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

std::string CudaDevice::describe() const {
  int driver = 0, runtime = 0;
  cuda::check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  cuda::check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  return fmt::format(
      "{}: device {} of {}, compute capability {}.{}, {} multiprocessors, {} ({} free), driver {}, "
      "runtime {}",
      name_, index_, count_, compute_capability_ / 10, compute_capability_ % 10, multiprocessors_,
      gibibytes(total_memory_), gibibytes(free_memory()), version_text(driver),
      version_text(runtime));
}

void CudaDevice::make_current() const {
  if (current_index == index_) return;
  cuda::check(cudaSetDevice(index_), "cudaSetDevice");
  current_index = index_;
}

cudaStream_t CudaDevice::compute() const {
  make_current();
  return compute_->get();
}
cudaStream_t CudaDevice::communication() const {
  make_current();
  return communication_->get();
}
cudaStream_t CudaDevice::copy() const {
  make_current();
  return copy_->get();
}

template <class Query>
void CudaDevice::poll(Query done) const {
  using Clock = std::chrono::steady_clock;
  constexpr auto kSpin = std::chrono::microseconds(50);   // short waits end within this
  constexpr auto kSleep = std::chrono::microseconds(20);  // then the core is left to others
  constexpr auto kCheck = std::chrono::microseconds(500);
  const Clock::time_point begin = Clock::now();
  Clock::time_point checked = begin;
  while (!done()) {
    const Clock::time_point now = Clock::now();
    if (now - checked >= kCheck) {
      checked = now;
      const std::lock_guard lock(checks_->mutex);
      for (const auto& health_check : checks_->list) health_check();
    }
    if (now - begin < kSpin) continue;
    std::this_thread::sleep_for(kSleep);
  }
}

void CudaDevice::wait(const cuda::Event& event) const {
  make_current();
  poll([&event] { return event.done(); });
}

void CudaDevice::wait(cudaStream_t stream) const {
  make_current();
  poll([stream] {
    const cudaError_t error = cudaStreamQuery(stream);
    if (error == cudaErrorNotReady) {
      cudaGetLastError();
      return false;
    }
    cuda::check(error, "cudaStreamQuery (earlier work of the stream)");
    return true;
  });
}

std::shared_ptr<void> CudaDevice::add_health_check(std::function<void()> check) {
  const std::lock_guard lock(checks_->mutex);
  const auto place = checks_->list.insert(checks_->list.end(), std::move(check));
  return {this, [checks = checks_, place](void*) {
            const std::lock_guard removal(checks->mutex);
            checks->list.erase(place);
          }};
}

CudaDevice& open_cuda_device(int local_rank, int world_rank) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (opened_device != nullptr) {
    if (opened_local_rank != local_rank) {
      throw std::logic_error(fmt::format("the CUDA device is open for local rank {}, not {}",
                                         opened_local_rank.load(), local_rank));
    }
    return *opened_device;
  }
  opened_device = std::make_unique<CudaDevice>(local_rank, world_rank);
  opened_index = opened_device->index();
  opened_local_rank = local_rank;
  opened_world_rank = world_rank;
  return *opened_device;
}

bool cuda_device_is_open() { return opened_index >= 0; }

CudaDevice& cuda_device() {
  if (!cuda_device_is_open()) throw std::logic_error("the CUDA device is used before it is opened");
  return *opened_device;
}

std::string describe_device() {
  if (cuda_device_is_open()) return "cuda, " + cuda_device().describe();
  const std::string reason = cuda::unavailable_reason();
  if (!reason.empty()) return "cpu: " + reason;
  int count = 0;
  cuda::check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return fmt::format("cpu: compute.device is not cuda (CUDA devices here: {})", count);
}

}  // namespace scone
