#include "launch/bus_error.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <ctime>

// What is called from the handler calls nothing that a signal handler may not.
namespace scone {
namespace {

struct sigaction course_before {};
std::array<char, 512> message_prefix{};
std::atomic<bool> telling = false;

/// A mapped file that an address lies in.
struct MappedPlace {
  std::array<char, PATH_MAX> path{};  // empty: none
  std::uint64_t offset = 0;           // in the file
};
MappedPlace place;                        // not on the stack of whichever thread it is
std::array<char, PATH_MAX + 256> line{};  // of /proc/self/maps

/// Reads a hexadecimal number and the character behind it.
std::uint64_t take_number(const char*& text) {
  std::uint64_t number = 0;
  for (; *text != '\0'; ++text) {
    const char c = *text;
    const bool is_digit = c >= '0' && c <= '9';
    if (!is_digit && (c < 'a' || c > 'f')) {
      ++text;
      break;
    }
    number = number * 16 + static_cast<std::uint64_t>(is_digit ? c - '0' : c - 'a' + 10);
  }
  return number;
}

/// Whether `line` (BEGIN-END PERMISSIONS OFFSET DEVICE INODE PATH) is of a file that holds the
/// address; fills `place` then.
bool take_line(std::uint64_t address) {
  const char* text = line.data();
  const std::uint64_t begin = take_number(text), end = take_number(text);
  const char* const path = std::strchr(text, '/');
  if (address < begin || address >= end || path == nullptr) return false;
  text = std::strchr(text, ' ');
  if (text == nullptr) return false;
  place.offset = take_number(++text) + (address - begin);
  std::strncpy(place.path.data(), path, place.path.size() - 1);
  return true;
}

void find_place(std::uint64_t address) {
  const int maps = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return;
  std::size_t length = 0;
  for (char c = 0; ::read(maps, &c, 1) == 1;) {
    if (c != '\n') {
      if (length + 1 < line.size()) line[length++] = c;
      continue;
    }
    line[length] = '\0';
    length = 0;
    if (take_line(address)) break;
  }
  ::close(maps);
}

void say(const char* text) {
  if (::write(STDERR_FILENO, text, std::strlen(text)) < 0) return;  // there is nobody to tell
}

void say_number(std::uint64_t number) {
  std::array<char, 24> digits{};
  std::size_t at = digits.size() - 1;
  do {
    digits[--at] = static_cast<char>('0' + number % 10);
    number /= 10;
  } while (number > 0);
  say(digits.data() + at);
}

void on_bus_error(int, siginfo_t* info, void*) {
  constexpr timespec moment{0, 1'000'000};
  while (telling.exchange(true)) ::nanosleep(&moment, nullptr);  // another thread has the same
  find_place(reinterpret_cast<std::uintptr_t>(info->si_addr));
  if (place.path[0] != '\0') {
    say(message_prefix.data());
    say(place.path.data());
    say(": cannot be read at byte ");
    say_number(place.offset);
    say(" (bus error): the file was cut short while it was in use, or its disk or network "
        "failed\n");
  }
  sigaction(SIGBUS, &course_before, nullptr);  // the read is tried again, and fails again
  telling = false;
}

}  // namespace

void tell_of_bus_errors(const std::string& prefix) {
  std::copy_n(prefix.data(), std::min(prefix.size(), message_prefix.size() - 1),
              message_prefix.data());
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, &course_before);
}

}  // namespace scone
