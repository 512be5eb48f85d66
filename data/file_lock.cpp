#include "data/file_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "parallel/error.h"

namespace scone {
namespace {

/// Whether the open file is still the one of that name: another process may have removed it between
/// the opening and the lock.
bool is_in_place(int descriptor, const std::filesystem::path& file) {
  struct stat opened {};
  struct stat named {};
  return ::fstat(descriptor, &opened) == 0 && ::stat(file.c_str(), &named) == 0 &&
         opened.st_ino == named.st_ino && opened.st_dev == named.st_dev;
}

}  // namespace

FileLock::FileLock(const std::filesystem::path& file) : file_(file) {
  for (;;) {
    descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor_ < 0)
      throw InputError(fmt::format("{}: cannot be written: {}; give another folder", file.string(),
                                   std::strerror(errno)));
    int result = 0;
    do {
      result = ::flock(descriptor_, LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    if (result != 0) {
      outcome_ = errno == EWOULDBLOCK ? Outcome::held_by_another : Outcome::unsupported;
      return;
    }
    outcome_ = Outcome::held;
    if (is_in_place(descriptor_, file)) return;
    ::close(descriptor_);
  }
}

FileLock::~FileLock() { ::close(descriptor_); }

void FileLock::remove_file() { ::unlink(file_.c_str()); }

}  // namespace scone
