#include "data/file_mapping.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "parallel/error.h"

namespace scone {

FileMapping::FileMapping(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    throw InputError(fmt::format("{}: no such file", path.string()));
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw InputError(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
  }
  bytes_ = static_cast<std::size_t>(std::filesystem::file_size(path));
  void* address = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
  ::close(descriptor);
  if (address == MAP_FAILED) {
    throw InputError(fmt::format("{}: cannot be mapped: {}", path.string(), std::strerror(errno)));
  }
  data_ = static_cast<const std::byte*>(address);
}

FileMapping::~FileMapping() { ::munmap(const_cast<std::byte*>(data_), bytes_); }

}  // namespace scone
