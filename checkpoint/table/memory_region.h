#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace scone {

/// Bytes that can be taken without swapping, as the kernel estimates; the largest number where it
/// does not tell.
std::size_t available_memory();

/// Anonymous memory of its own pages, zeros at first, in huge pages where the system has them
/// (RAII).
class MemoryRegion {
 public:
  MemoryRegion() = default;
  /// `purpose` names it in errors. Throws std::runtime_error: not so much memory is available.
  MemoryRegion(std::size_t bytes, const std::string& purpose);
  ~MemoryRegion();
  MemoryRegion(MemoryRegion&& other) noexcept;
  MemoryRegion& operator=(MemoryRegion&& other) noexcept;

  std::byte* data() const { return data_; }  // aligned to 2 MiB
  std::size_t size() const { return bytes_; }
  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  void* mapping_ = nullptr;
  std::size_t mapped_ = 0;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace scone
