#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

namespace scone {

/// Bytes of this process' private memory now: what malloc, stacks and private mappings hold, pages
/// of mapped files not.
std::int64_t private_memory_bytes();

/// The most bytes that this process has had in memory so far, pages of files and memory shared with
/// other processes included.
std::int64_t peak_memory_bytes();

/// What may still be taken, by several threads.
class MemoryBudget {
 public:
  explicit MemoryBudget(std::int64_t bytes) : free_(bytes) {}
  bool try_reserve(std::int64_t bytes) {
    if (free_.fetch_sub(bytes) >= bytes) return true;
    free_.fetch_add(bytes);
    return false;
  }
  void release(std::int64_t bytes) { free_.fetch_add(bytes); }
  std::int64_t free_bytes() const { return free_.load(); }

 private:
  std::atomic<std::int64_t> free_;
};

/// `size` zeroed elements in pages of their own, which go back to the system with the object
/// (malloc would keep them). Throws std::bad_alloc.
template <class T>
class PageBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  PageBuffer() = default;
  explicit PageBuffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    void* pages = ::mmap(nullptr, size * sizeof(T), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(pages);
  }
  ~PageBuffer() { free(); }
  PageBuffer(PageBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PageBuffer& operator=(PageBuffer&& other) noexcept {
    if (this != &other) {
      free();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }

  std::size_t size() const { return size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  std::span<T> span() { return {data_, size_}; }
  std::span<const T> span() const { return {data_, size_}; }

 private:
  void free() {
    if (data_ != nullptr) ::munmap(data_, size_ * sizeof(T));
  }
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace scone
