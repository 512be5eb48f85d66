#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/bf16.h"

namespace scone {

enum class DType : std::uint8_t { fp32, bf16, int32, int64 };
enum class Device : std::uint8_t { cpu, cuda };

std::size_t size_of(DType dtype);
const char* name_of(DType dtype);

using Shape = std::vector<std::int64_t>;

/// Memory of a device: at least `bytes` (> 0), 64-byte aligned, zero for whatever the device is
/// given to do from now on.
using ZeroedMemory = std::function<std::shared_ptr<void>(std::size_t bytes)>;

/// Where Tensor::zeros takes the memory of a device other than the processor from. A backend calls
/// it when it is opened; a second call replaces the first's.
void register_device_memory(Device device, ZeroedMemory allocate);

/// A contiguous row-major array on a device. A copy of a Tensor, rows() and view() share the
/// memory, which is freed with its last holder. Memory is 64-byte aligned and zeroed (on the
/// processor: touched in parallel) when made.
class Tensor {
 public:
  Tensor() = default;
  /// Throws std::runtime_error where no backend of the device is open, OutOfDeviceMemory.
  static Tensor zeros(Shape shape, DType dtype = DType::fp32, Device device = Device::cpu);

  const Shape& shape() const { return shape_; }
  std::int64_t dim(std::size_t axis) const { return shape_.at(axis); }
  std::int64_t elements() const { return elements_; }
  std::size_t bytes() const { return static_cast<std::size_t>(elements_) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool empty() const { return elements_ == 0; }

  /// Typed pointer to the first element. T must be the dtype's C++ type: throws std::logic_error
  /// otherwise.
  template <class T>
  T* data() const;
  template <class T>
  std::span<T> span() const {
    return {data<T>(), static_cast<std::size_t>(elements_)};
  }
  void* raw() const { return data_; }

  /// View of `count` entries of axis 0 from `begin`. Throws std::out_of_range beyond the end.
  Tensor rows(std::int64_t begin, std::int64_t count) const;
  /// View of the first elements in another shape (same or fewer elements).
  Tensor view(Shape shape) const;

 private:
  std::shared_ptr<void> storage_;
  void* data_ = nullptr;
  Shape shape_;
  std::int64_t elements_ = 0;
  DType dtype_ = DType::fp32;
  Device device_ = Device::cpu;
};

/// "[3, 4] fp32", for messages.
std::string describe(const Tensor& tensor);

}  // namespace scone
