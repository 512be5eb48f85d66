#include "checkpoint/table/memory_region.h"

#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <utility>

namespace scone {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

}  // namespace

std::size_t available_memory() {
  std::ifstream lines("/proc/meminfo");
  std::string key;
  for (std::size_t kib = 0; lines >> key >> kib; lines.ignore(64, '\n')) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return std::numeric_limits<std::size_t>::max();  // an old kernel does not tell
}

MemoryRegion::MemoryRegion(std::size_t bytes, const std::string& purpose) : bytes_(bytes) {
  if (bytes == 0) return;
  // Checked first: the kernel would grant it, and kill the process when it is used.
  const std::size_t available = available_memory();
  if (bytes <= available) {
    mapped_ = bytes + kHugePage;
    mapping_ = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  if (bytes > available || mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw std::runtime_error("not enough memory for " + purpose + ": " + std::to_string(bytes) +
                             " bytes needed, " + std::to_string(available) + " available");
  }
  const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
  const std::size_t skipped = (kHugePage - address % kHugePage) % kHugePage;
  data_ = static_cast<std::byte*>(mapping_) + skipped;
  ::madvise(data_, bytes_, MADV_HUGEPAGE);  // advice: no error matters
}

MemoryRegion::~MemoryRegion() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_);
}

MemoryRegion::MemoryRegion(MemoryRegion&& other) noexcept { *this = std::move(other); }

MemoryRegion& MemoryRegion::operator=(MemoryRegion&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace scone
