#pragma once

#include <stdexcept>

namespace scone {

/// Bad input or configuration: the command ends with exit code 2. The message names the file, key
/// or line, what was expected and found, and the mend. Every other exception ends a command with 1.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace scone
