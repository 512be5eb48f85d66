#include "data/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "parallel/error.h"

namespace scone {

MappedFile::MappedFile(const std::filesystem::path& path) {
  const auto fail = [&](const char* what) {
    throw InputError(
        fmt::format("{}: cannot be {}: {}", path.string(), what, std::strerror(errno)));
  };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail("opened");
  struct stat status {};
  void* address = nullptr;
  if (::fstat(descriptor, &status) == 0 && status.st_size > 0) {
    bytes_ = static_cast<std::size_t>(status.st_size);
    address = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
  }
  ::close(descriptor);
  if (address == MAP_FAILED) fail("mapped");
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), bytes_);
}

std::span<std::byte> MappedFile::pages(std::int64_t offset, std::int64_t bytes) const {
  static const auto page = static_cast<std::int64_t>(::sysconf(_SC_PAGESIZE));
  const std::int64_t begin = offset / page * page;
  const std::int64_t end = std::min(offset + bytes, this->bytes());
  if (end <= begin) return {};
  return {const_cast<std::byte*>(data_) + begin, static_cast<std::size_t>(end - begin)};
}

void MappedFile::will_read(std::int64_t offset, std::int64_t bytes) const {
  // An advice alone: where it fails, the pages are read when they are touched.
  const std::span<std::byte> part = pages(offset, bytes);
  if (!part.empty()) ::madvise(part.data(), part.size(), MADV_WILLNEED);
}

bool MappedFile::is_cached(std::int64_t offset, std::int64_t bytes) const {
  std::span<std::byte> part = pages(offset, bytes);
  static const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::array<unsigned char, 256> resident;
  while (!part.empty()) {
    const std::size_t here = std::min(part.size(), resident.size() * page);
    if (::mincore(part.data(), here, resident.data()) != 0) return true;
    const std::size_t count = (here + page - 1) / page;
    if (!std::all_of(resident.begin(), resident.begin() + static_cast<std::ptrdiff_t>(count),
                     [](unsigned char flags) { return (flags & 1U) != 0; }))
      return false;
    part = part.subspan(here);
  }
  return true;
}

}  // namespace scone
