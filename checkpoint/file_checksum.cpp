#include "checkpoint/file_checksum.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <vector>

#include "parallel/error.h"

namespace scone {

namespace {

/// A file open for reading, closed with its scope.
class OpenedFile {
 public:
  explicit OpenedFile(const std::filesystem::path& path)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) {
      throw InputError(
          fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
    }
  }
  ~OpenedFile() { ::close(descriptor_); }
  OpenedFile(const OpenedFile&) = delete;
  OpenedFile& operator=(const OpenedFile&) = delete;
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

}  // namespace

struct StreamingChecksum::State {
  XXH3_state_t* xxh3 = XXH3_createState();
  std::vector<char> buffer;
  State() {
    if (xxh3 == nullptr) throw std::bad_alloc();
    XXH3_64bits_reset(xxh3);
  }
  ~State() { XXH3_freeState(xxh3); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

StreamingChecksum::StreamingChecksum() : state_(std::make_unique<State>()) {}
StreamingChecksum::~StreamingChecksum() = default;

void StreamingChecksum::add(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_->xxh3, bytes.data(), bytes.size());
}

void StreamingChecksum::add_file(const std::filesystem::path& path, std::int64_t offset,
                                 std::int64_t bytes) {
  const OpenedFile file(path);
  ::posix_fadvise(file.descriptor(), offset, bytes, POSIX_FADV_SEQUENTIAL);  // reads further ahead
  constexpr std::int64_t kPiece = std::int64_t{1} << 20;
  state_->buffer.resize(static_cast<std::size_t>(kPiece));
  for (std::int64_t done = 0; done < bytes;) {
    const auto wanted = static_cast<std::size_t>(std::min(kPiece, bytes - done));
    const ssize_t count = ::pread(file.descriptor(), state_->buffer.data(), wanted, offset + done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      throw InputError(fmt::format("{}: cannot be read from byte {}: {}", path.string(),
                                   offset + done, std::strerror(errno)));
    }
    if (count == 0) {
      throw InputError(fmt::format("{}: truncated: expected {} bytes from byte {}, found {}",
                                   path.string(), bytes, offset, done));
    }
    XXH3_64bits_update(state_->xxh3, state_->buffer.data(), static_cast<std::size_t>(count));
    done += count;
  }
}

std::string StreamingChecksum::hex() const {
  return fmt::format("{:016x}", XXH3_64bits_digest(state_->xxh3));
}

std::int64_t file_bytes(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw InputError(fmt::format("{}: no such file", path.string()));
  }
  const auto bytes = std::filesystem::file_size(path, error);
  if (error) throw InputError(fmt::format("{}: {}", path.string(), error.message()));
  return static_cast<std::int64_t>(bytes);
}

std::string file_checksum(const std::filesystem::path& path) {
  StreamingChecksum checksum;
  checksum.add_file(path, 0, file_bytes(path));
  return checksum.hex();
}

}  // namespace scone
