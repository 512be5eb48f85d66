#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>

namespace scone {

/// A call of the CUDA runtime or of one of its libraries failed. The message names the call, the
/// error and the rank.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace cuda {

/// Throws CudaError unless `error` is cudaSuccess. what: the call, or the kernel that was launched.
void check(cudaError_t error, const char* what);

/// "rank 3, CUDA device 1", as far as known, for messages.
std::string error_place();

/// Whether a build for `architectures` has code for a device of this compute capability.
/// architectures: as CMAKE_CUDA_ARCHITECTURES, split by , or ; ("80-real,90": code of 80, code and
/// PTX of 90). Code serves its major version from its minor version on, PTX every later one; a
/// letter behind the number ("90a") binds both to exactly that one.
bool architecture_is_built(std::string_view architectures, int major, int minor);

/// Why no CUDA device can be used here: no driver, a driver older than the runtime (both versions
/// named), no device. Empty: there is one.
std::string unavailable_reason();

/// Device memory, freed with the object. Not initialised.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  /// Throws OutOfDeviceMemory.
  explicit DeviceBuffer(std::size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Page-locked host memory, which copies to and from the device read and write asynchronously.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// A point in a stream's work (without timing). Done from the start until recorded.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;

  void record(cudaStream_t stream);
  /// What `stream` is given from now on comes after this event.
  void hold(cudaStream_t stream) const;
  bool done() const;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace cuda

/// The device that this process works on, with its streams. Streams do not wait for one another
/// but by events. Any thread may use it.
class CudaDevice {
 public:
  CudaDevice(int local_rank, int world_rank);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  int index() const { return index_; }
  int count() const { return count_; }  // devices that this process sees
  int multiprocessors() const { return multiprocessors_; }
  int compute_capability() const { return compute_capability_; }  // 90 for 9.0
  /// Most bytes of shared memory that a block can be given.
  std::size_t shared_memory_per_block() const { return shared_memory_per_block_; }
  /// Of all of the device, in bytes.
  std::size_t total_memory() const { return total_memory_; }
  /// What no process holds of it, now.
  std::size_t free_memory() const;
  /// Address of the device on its node ("0000:1b:00.0"), the same for processes that share it.
  const std::string& bus_id() const { return bus_id_; }
  const std::string& name() const { return name_; }
  /// "NVIDIA H100 80GB HBM3: device 1 of 8, compute capability 9.0, 79.1 GiB (78.6 free), driver
  /// 13.0, runtime 13.0".
  std::string describe() const;

  /// Makes it the calling thread's current device, which launches and copies need. The streams'
  /// accessors do so.
  void make_current() const;
  cudaStream_t compute() const;
  cudaStream_t communication() const;
  cudaStream_t copy() const;

  /// Return when the event has come, or all work given to the stream so far is done. They poll, and
  /// call the health checks while they do, whose exceptions leave them.
  void wait(const cuda::Event& event) const;
  void wait(cudaStream_t stream) const;

  /// check() is called by waits, by the thread that waits, from a few times a millisecond on, until
  /// the returned handle goes. It throws where the wait could last for ever (another rank failed).
  [[nodiscard]] std::shared_ptr<void> add_health_check(std::function<void()> check);

 private:
  template <class Query>
  void poll(Query done) const;

  int index_ = 0, count_ = 0, multiprocessors_ = 0, compute_capability_ = 0;
  std::size_t shared_memory_per_block_ = 0;
  std::size_t total_memory_ = 0;
  std::string name_, bus_id_;
  std::unique_ptr<cuda::Stream> compute_, communication_, copy_;
  struct HealthChecks {
    std::mutex mutex;
    std::list<std::function<void()>> list;
  };
  std::shared_ptr<HealthChecks> checks_ = std::make_shared<HealthChecks>();
};

/// Opens the process's device, once: number local_rank of those that the process sees, counted
/// round. local_rank: this rank among those of its node; world_rank: for messages. Throws
/// InputError where there is no device, the driver is older than the runtime, or the build has no
/// code for the device; std::logic_error when opened already for another local rank.
CudaDevice& open_cuda_device(int local_rank, int world_rank = 0);
bool cuda_device_is_open();
/// The opened device; std::logic_error before open_cuda_device.
CudaDevice& cuda_device();

/// One line for the start of a run: the device in use and why. "cuda, NVIDIA H100 ..: device 0 of 8
/// ..", or "cpu: no CUDA device is opened (2 are here)", or "cpu: the machine has no NVIDIA
/// driver".
std::string describe_device();

}  // namespace scone
