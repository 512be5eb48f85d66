#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace scone {

/// Bad input or configuration: the command ends with exit code 2. The message names the file, key
/// or line, what was expected and found, and the mend. Every other exception ends a command with 1.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A device's memory does not hold what the configuration asks for. The message names the settings
/// to change.
class OutOfDeviceMemory : public InputError {
 public:
  OutOfDeviceMemory(const std::string& message, std::size_t needed_bytes, std::size_t free_bytes,
                    std::size_t total_bytes)
      : InputError(message), needed(needed_bytes), free(free_bytes), total(total_bytes) {}
  std::size_t needed, free, total;  // bytes; needed: by the allocation that failed
};

}  // namespace scone
