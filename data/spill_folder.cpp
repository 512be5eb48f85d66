#include "data/spill_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* lock_name = "lock";

std::int64_t free_bytes_of(const fs::path& folder) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  return error ? 0 : static_cast<std::int64_t>(space.available);
}

/// Whether the folder is empty or a run's own: it is locked before anything else is put into it.
bool may_be_ours(const fs::path& folder) {
  std::error_code error;
  return fs::is_empty(folder, error) || fs::exists(folder / lock_name, error);
}

}  // namespace

SpillFile SpillFile::create(const fs::path& path, bool named) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    throw InputError(fmt::format("{}: cannot be created: {}; give --spill another folder",
                                 path.string(), std::strerror(errno)));
  }
  if (!named) ::unlink(path.c_str());
  return SpillFile(path, descriptor, 0);
}

SpillFile SpillFile::open(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (descriptor < 0 || ::fstat(descriptor, &status) != 0) {
    if (descriptor >= 0) ::close(descriptor);
    throw std::runtime_error(
        fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
  }
  return SpillFile(path, descriptor, status.st_size);
}

SpillFile::~SpillFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

SpillFile::SpillFile(SpillFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_.load()) {}

std::int64_t SpillFile::append(std::span<const std::byte> bytes) {
  const auto wanted = static_cast<std::int64_t>(bytes.size());
  const std::int64_t offset = size_.fetch_add(wanted);
  for (std::int64_t done = 0; done < wanted;) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data() + done,
                                     static_cast<std::size_t>(wanted - done), offset + done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      const int error = written == 0 ? ENOSPC : errno;
      throw InputError(fmt::format(
          "{}: writing temporary data failed: {}; {:.1f} MB more were needed at this point, {:.1f} "
          "MB are free; give --spill a folder on a larger disk, or more --memory",
          path_.string(), std::strerror(error), static_cast<double>(wanted - done) / 1e6,
          static_cast<double>(free_bytes_of(path_.parent_path())) / 1e6));
    }
    done += written;
  }
  return offset;
}

void SpillFile::read(std::int64_t offset, std::span<std::byte> bytes) const {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t got = ::pread(descriptor_, bytes.data() + done, bytes.size() - done,
                                offset + static_cast<std::int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw std::runtime_error(
          fmt::format("{}: reading temporary data at byte {} failed: {}", path_.string(), offset,
                      got == 0 ? "the file ends before" : std::strerror(errno)));
    }
    done += static_cast<std::size_t>(got);
  }
}

void SpillFile::sync() {
  if (::fsync(descriptor_) != 0) {
    throw InputError(
        fmt::format("{}: writing temporary data failed: {}; {:.1f} MB are free; give --spill a "
                    "folder on a larger disk",
                    path_.string(), std::strerror(errno),
                    static_cast<double>(free_bytes_of(path_.parent_path())) / 1e6));
  }
}

SpillFolder::SpillFolder(const fs::path& folder, int rank, int ranks)
    : folder_(folder), path_(folder / fmt::format("rank-{}", rank)) {
  // Another rank that ends at this moment may remove the folder between two steps.
  std::error_code error;
  for (int attempt = 0; attempt < 10 && !fs::is_directory(path_, error); ++attempt)
    fs::create_directories(path_, error);
  if (!fs::is_directory(path_, error)) {
    throw InputError(fmt::format(
        "{}: the folder for temporary data cannot be created: {}; give --spill another one",
        path_.string(), error ? error.message() : "not a folder"));
  }
  if (!may_be_ours(path_)) {
    throw InputError(
        fmt::format("{}: holds files that are not of scone fgrams, which would remove them with "
                    "its temporary data; give --spill another folder",
                    path_.string()));
  }
  lock_ = std::make_unique<FileLock>(path_ / lock_name);
  if (lock_->outcome() == FileLock::Outcome::unsupported)
    spdlog::warn("{}: the file system cannot lock it; see to it that no other scone fgrams uses it",
                 path_.string());
  if (lock_->outcome() == FileLock::Outcome::held_by_another) {
    throw InputError(
        fmt::format("{}: another scone fgrams is using this folder for temporary data; wait for "
                    "it, or give another --spill or --output",
                    path_.string()));
  }
  // What a dead run of more ranks left.
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    const std::string name = entry.path().filename();
    if (name.rfind("rank-", 0) != 0 || std::atoi(name.c_str() + 5) < ranks) continue;
    if (!may_be_ours(entry.path())) continue;
    const FileLock other(entry.path() / lock_name);
    if (other.outcome() == FileLock::Outcome::held) fs::remove_all(entry.path(), error);
  }
}

SpillFolder::~SpillFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  lock_.reset();
  // Succeeds for the last rank, whose folder was the last in it. A link is its user's.
  if (!fs::is_symlink(folder_, ignored)) fs::remove(folder_, ignored);
}

void SpillFolder::keep_only(std::span<const std::string> names) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(path_, ignored)) {
    const std::string name = entry.path().filename();
    if (name != lock_name && std::find(names.begin(), names.end(), name) == names.end())
      fs::remove_all(entry.path(), ignored);
  }
}

std::int64_t SpillFolder::free_bytes() const { return free_bytes_of(path_); }

std::string SpillFolder::disk() const {
  struct stat status {};
  if (::stat(path_.c_str(), &status) != 0) {
    throw InputError(
        fmt::format("{}: cannot be examined: {}", path_.string(), std::strerror(errno)));
  }
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return fmt::format("{}:{}", host.data(), status.st_dev);
}

}  // namespace scone
