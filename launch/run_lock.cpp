#include "launch/run_lock.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>

#include "parallel/error.h"

namespace scone {
namespace {

/// This process, as the file says who holds it.
std::string holder_line() {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  return fmt::format("pid {} on {} since {:%Y-%m-%d %H:%M:%S}\n", getpid(), host.data(),
                     fmt::localtime(std::time(nullptr)));
}

std::string read_holder(int descriptor) {
  std::array<char, 512> text{};
  const auto bytes = ::pread(descriptor, text.data(), text.size(), 0);
  const std::string line(text.data(), static_cast<std::size_t>(bytes > 0 ? bytes : 0));
  const std::string holder = line.substr(0, line.find('\n'));
  return holder.empty() ? "another run" : holder;  // which has not written who it is yet
}

/// 0, or the error of flock.
int try_lock(int descriptor) {
  int result = 0;
  do {
    result = ::flock(descriptor, LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& folder, std::chrono::seconds patience,
                 const std::string& key) {
  const std::string file = (folder / ".lock").string();
  descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0)
    throw InputError(fmt::format("{}: {} cannot be opened: {}; remove it, or choose another folder",
                                 key, file, std::strerror(errno)));
  const auto deadline = std::chrono::steady_clock::now() + patience;
  int error = try_lock(descriptor_);
  if (error == EWOULDBLOCK && patience.count() > 0)
    spdlog::info("{}: {} is held by {}; waiting up to {} s for it to end", key, file,
                 read_holder(descriptor_), patience.count());
  while (error == EWOULDBLOCK && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    error = try_lock(descriptor_);
  }
  if (error == EWOULDBLOCK) {
    const std::string holder = read_holder(descriptor_);
    ::close(descriptor_);
    throw InputError(
        fmt::format("{}: {} is in use: {} holds {}; wait for that run or end it, or give "
                    "this one a folder of its own",
                    key, folder.string(), holder, file));
  }
  if (error != 0) {
    spdlog::warn("{}: {} cannot be locked ({}); see to it that no second run writes this folder",
                 key, file, std::strerror(error));
    return;
  }
  // What another run reads in a message; that it could not be written is no reason to end.
  const std::string line = holder_line();
  if (::ftruncate(descriptor_, 0) != 0 ||
      ::pwrite(descriptor_, line.data(), line.size(), 0) != static_cast<ssize_t>(line.size()))
    spdlog::warn("{}: cannot be written: {}", file, std::strerror(errno));
}

RunLock::~RunLock() { ::close(descriptor_); }

bool is_locked(const std::filesystem::path& folder) {
  const int descriptor = ::open((folder / ".lock").c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return false;
  const bool held = try_lock(descriptor) == EWOULDBLOCK;
  ::close(descriptor);
  return held;
}

}  // namespace scone
