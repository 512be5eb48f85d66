#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>

// A fuzz target calls a reader with bytes; every reader must either take them or throw InputError.
// Another exception, a read out of bounds or undefined behaviour ends the program.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace scone {

/// A file in memory that readers open by its path; it goes with the object.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view content = {}) : descriptor_(::memfd_create("fuzz", 0)) {
    if (descriptor_ < 0 || ::write(descriptor_, content.data(), content.size()) !=
                               static_cast<ssize_t>(content.size())) {
      throw std::runtime_error("no memory for a file");
    }
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

/// A path for a file of this process that is written by name; what lies there goes with the object.
class NamedFile {
 public:
  NamedFile() {
    std::error_code error;
    const std::filesystem::path memory = "/dev/shm";  // no disk is worn out where there is one
    path_ =
        (std::filesystem::is_directory(memory, error) ? memory
                                                      : std::filesystem::temp_directory_path()) /
        ("scone-fuzz-" + std::to_string(::getpid()) + ".h5");
  }
  ~NamedFile() {
    std::error_code error;
    std::filesystem::remove(path_, error);
  }
  NamedFile(const NamedFile&) = delete;
  NamedFile& operator=(const NamedFile&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Takes numbers and bytes from the front of a fuzz input; zeros when it is used up.
class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}
  template <class T>
  T take() {
    T value{};
    const std::size_t bytes = std::min(sizeof value, rest_.size());
    std::memcpy(&value, rest_.data(), bytes);
    rest_ = rest_.subspan(bytes);
    return value;
  }
  /// Mostly `likely`, so that what lies behind a check is reached too.
  std::int64_t mostly(std::int64_t likely) {
    return take<std::uint8_t>() % 8 == 7 ? take<std::int64_t>() : likely;
  }
  std::string_view rest() const {
    return {reinterpret_cast<const char*>(rest_.data()), rest_.size()};
  }

 private:
  std::span<const std::uint8_t> rest_;
};

}  // namespace scone
