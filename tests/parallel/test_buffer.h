#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

namespace scone {

/// Where the tensor collectives under test work: the host's memory or a device's. Of a device the
/// two copies wait for the work before them.
struct TestMemory {
  void* (*allocate)(std::size_t bytes);
  void (*free)(void* pointer);
  void (*copy_in)(void* to, const void* from_host, std::size_t bytes);
  void (*copy_out)(void* to_host, const void* from, std::size_t bytes);
};

inline const TestMemory host_memory{
    [](std::size_t bytes) { return ::operator new(bytes); },
    [](void* pointer) { ::operator delete(pointer); },
    [](void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); },
    [](void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }};

/// Values in such memory.
template <class T>
class TestBuffer {
 public:
  TestBuffer(const TestMemory& memory, const std::vector<T>& values)
      : memory_(&memory), size_(values.size()), data_(memory.allocate(bytes())) {
    if (size_ > 0) memory.copy_in(data_, values.data(), bytes());
  }
  TestBuffer(TestBuffer&& other) noexcept
      : memory_(other.memory_), size_(other.size_), data_(std::exchange(other.data_, nullptr)) {}
  TestBuffer(const TestBuffer&) = delete;
  TestBuffer& operator=(const TestBuffer&) = delete;
  ~TestBuffer() {
    if (data_ != nullptr) memory_->free(data_);
  }
  std::span<T> span() { return {static_cast<T*>(data_), size_}; }
  std::vector<T> values() const {
    std::vector<T> result(size_);
    if (size_ > 0) memory_->copy_out(result.data(), data_, bytes());
    return result;
  }

 private:
  std::size_t bytes() const { return size_ * sizeof(T); }
  const TestMemory* memory_;
  std::size_t size_;
  void* data_;
};

}  // namespace scone
