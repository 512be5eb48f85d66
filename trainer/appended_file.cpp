#include "trainer/appended_file.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace scone {

AppendedFile::AppendedFile(std::filesystem::path path, bool anew)
    : path_(std::move(path)),
      descriptor_(::open(path_.c_str(),
                         O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (anew ? O_TRUNC : 0), 0666)) {
  if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), path_.string());
}

AppendedFile::~AppendedFile() {
  if (const int error = write_waiting(); error != 0)
    spdlog::warn("{}: its last {} bytes could not be written and are lost: {}", path_.string(),
                 waiting_.size(), std::strerror(error));
  ::close(descriptor_);
}

void AppendedFile::add(std::string_view bytes) {
  waiting_ += bytes;
  const int error = write_waiting();
  if (error != 0 && !failing_)
    spdlog::warn(
        "{}: cannot be written: {}; training goes on, and what belongs there is written as soon as "
        "it can be",
        path_.string(), std::strerror(error));
  if (error == 0 && failing_) spdlog::info("{}: written again, nothing is missing", path_.string());
  failing_ = error != 0;
}

int AppendedFile::write_waiting() {
  std::size_t done = 0;
  int error = 0;
  while (done < waiting_.size() && error == 0) {
    const ssize_t count = ::write(descriptor_, waiting_.data() + done, waiting_.size() - done);
    if (count > 0)
      done += static_cast<std::size_t>(count);
    else if (count == 0)
      error = ENOSPC;
    else if (errno != EINTR)
      error = errno;
  }
  waiting_.erase(0, done);
  return error;
}

}  // namespace scone
