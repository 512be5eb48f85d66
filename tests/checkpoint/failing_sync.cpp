#include "failing_sync.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <stdexcept>

namespace {

std::atomic<ino_t> failing_inode = 0;  // 0: none

}  // namespace

/// In place of the C library's.
extern "C" int fsync(int descriptor) {
  struct stat status {};
  if (failing_inode != 0 && fstat(descriptor, &status) == 0 && status.st_ino == failing_inode) {
    errno = EIO;
    return -1;
  }
  return static_cast<int>(syscall(SYS_fsync, descriptor));
}

namespace scone {

FailingSync::FailingSync(const std::filesystem::path& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) throw std::logic_error("FailingSync: no " + path.string());
  failing_inode = status.st_ino;
}

FailingSync::~FailingSync() { failing_inode = 0; }

}  // namespace scone
