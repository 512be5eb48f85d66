#include "model/tensor.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace scone {
namespace {

std::string join(const Shape& shape) {
  std::string text;
  for (const std::int64_t extent : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(extent);
  }
  return text;
}

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{1} << 21;
constexpr std::size_t kTouchBlock = std::size_t{1} << 20;  // bytes zeroed by one thread at a time

std::int64_t product(const Shape& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t extent : shape) {
    if (extent < 0)
      throw std::invalid_argument(fmt::format("tensor shape [{}] is negative", join(shape)));
    elements *= extent;
  }
  return elements;
}

std::shared_ptr<void> allocate_zeroed(std::size_t bytes) {
  // Huge pages where they are filled: first touched 512 times less often, and found by fewer
  // entries of the processor's page table cache.
  const std::size_t alignment = bytes < 4 * kHugePage ? kAlignment : kHugePage;
  const std::size_t padded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, padded);
  if (memory == nullptr) throw std::bad_alloc();
  std::shared_ptr<void> storage(memory, [](void* pointer) { std::free(pointer); });
  if (alignment == kHugePage) madvise(memory, padded, MADV_HUGEPAGE);  // refused: small pages serve
  auto* first = static_cast<std::byte*>(memory);
  const auto blocks = static_cast<std::int64_t>((padded + kTouchBlock - 1) / kTouchBlock);
#pragma omp parallel for schedule(static) if (blocks > 1)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::size_t begin = static_cast<std::size_t>(block) * kTouchBlock;
    std::memset(first + begin, 0, std::min(kTouchBlock, padded - begin));
  }
  return storage;
}

struct DeviceMemories {
  std::mutex mutex;
  std::map<Device, ZeroedMemory> of_device;
};

DeviceMemories& device_memories() {
  static DeviceMemories memories;
  return memories;
}

std::shared_ptr<void> allocate_zeroed(Device device, std::size_t bytes) {
  if (device == Device::cpu) return allocate_zeroed(bytes);
  ZeroedMemory allocate;
  {
    const std::lock_guard lock(device_memories().mutex);
    const auto found = device_memories().of_device.find(device);
    if (found != device_memories().of_device.end()) allocate = found->second;
  }
  if (!allocate) {
    throw std::runtime_error(
        "a tensor of the CUDA device is wanted, but none is open: this build may have no CUDA "
        "(-DSCONE_CUDA=ON), or compute.device is cpu");
  }
  return allocate(bytes);
}

}  // namespace

void register_device_memory(Device device, ZeroedMemory allocate) {
  const std::lock_guard lock(device_memories().mutex);
  device_memories().of_device[device] = std::move(allocate);
}

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return 2;
    case DType::fp32:
    case DType::int32:
      return 4;
    case DType::int64:
      return 8;
  }
  throw std::logic_error("unknown dtype");
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return "fp32";
    case DType::bf16:
      return "bf16";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
  }
  throw std::logic_error("unknown dtype");
}

Tensor Tensor::zeros(Shape shape, DType dtype, Device device) {
  Tensor tensor;
  tensor.elements_ = product(shape);
  tensor.shape_ = std::move(shape);
  tensor.dtype_ = dtype;
  tensor.device_ = device;
  if (tensor.elements_ > 0) {
    tensor.storage_ = allocate_zeroed(device, tensor.bytes());
    tensor.data_ = tensor.storage_.get();
  }
  return tensor;
}

template <class T>
T* Tensor::data() const {
  constexpr bool matches_int32 = std::is_same_v<T, std::int32_t>;
  constexpr bool matches_int64 = std::is_same_v<T, std::int64_t>;
  constexpr bool matches_bf16 = std::is_same_v<T, Bf16>;
  const DType wanted = matches_int32   ? DType::int32
                       : matches_int64 ? DType::int64
                       : matches_bf16  ? DType::bf16
                                       : DType::fp32;
  if (data_ != nullptr && dtype_ != wanted) {
    throw std::logic_error(fmt::format("tensor {} read as {}", describe(*this), name_of(wanted)));
  }
  return static_cast<T*>(data_);
}
template float* Tensor::data<float>() const;
template Bf16* Tensor::data<Bf16>() const;
template std::int32_t* Tensor::data<std::int32_t>() const;
template std::int64_t* Tensor::data<std::int64_t>() const;

Tensor Tensor::rows(std::int64_t begin, std::int64_t count) const {
  if (shape_.empty() || begin < 0 || count < 0 || begin > shape_[0] - count) {
    throw std::out_of_range(
        fmt::format("rows [{}, {} + {}) of tensor {}", begin, begin, count, describe(*this)));
  }
  Tensor part = *this;
  const std::int64_t row_elements = shape_[0] == 0 ? 0 : elements_ / shape_[0];
  part.shape_[0] = count;
  part.elements_ = row_elements * count;
  if (data_ != nullptr) {
    part.data_ = static_cast<std::byte*>(data_) +
                 static_cast<std::size_t>(begin * row_elements) * size_of(dtype_);
  }
  return part;
}

Tensor Tensor::view(Shape shape) const {
  const std::int64_t wanted = product(shape);
  if (wanted > elements_) {
    throw std::out_of_range(fmt::format("view [{}] of tensor {}", join(shape), describe(*this)));
  }
  Tensor other = *this;
  other.shape_ = std::move(shape);
  other.elements_ = wanted;
  return other;
}

std::string describe(const Tensor& tensor) {
  return fmt::format("[{}] {}", join(tensor.shape()), name_of(tensor.dtype()));
}

}  // namespace scone
