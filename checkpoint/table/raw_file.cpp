#include "checkpoint/table/raw_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel/error.h"

namespace scone {

RawFile::RawFile(std::filesystem::path path, int flags) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), flags | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    throw InputError(path_.string() + ": cannot be opened: " + std::strerror(errno));
  }
}
RawFile::~RawFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}
RawFile::RawFile(RawFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

std::int64_t RawFile::bytes() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) fail("be measured", errno);
  return status.st_size;
}

void RawFile::read(std::int64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    // The kernel reads at most 2 GiB in one call.
    const ssize_t done =
        ::pread(descriptor_, out.data(), std::min(out.size(), std::size_t{1} << 30), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      throw std::runtime_error(path_.string() + ": at byte " + std::to_string(offset) + ": " +
                               (done == 0
                                    ? "the file ends; it was cut after it was opened"
                                    : std::string("cannot be read: ") + std::strerror(errno)));
    }
    out = out.subspan(static_cast<std::size_t>(done));
    offset += done;
  }
}

void RawFile::write(std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t done =
        ::write(descriptor_, bytes.data(), std::min(bytes.size(), std::size_t{1} << 30));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("be written", errno);
    bytes = bytes.subspan(static_cast<std::size_t>(done));
  }
}

void RawFile::sync() const {
  if (::fsync(descriptor_) != 0) fail("be synced to disk", errno);
}

void RawFile::fail(const char* action, int error) const {
  throw std::runtime_error(path_.string() + ": cannot " + action + ": " + std::strerror(error));
}

}  // namespace scone
