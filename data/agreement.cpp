#include "data/agreement.h"

#include <fmt/format.h>

#include <span>
#include <stdexcept>
#include <string>

#include "parallel/error.h"

namespace scone {

void agree(Communicator& communicator, const std::function<void()>& part) {
  if (communicator.size() == 1) {
    part();
    return;
  }
  std::string message;  // its first letter says what kind of error
  try {
    part();
  } catch (const InputError& error) {
    message = fmt::format("i{}", error.what());
  } catch (const std::exception& error) {
    message = fmt::format("r{}", error.what());
  }
  for (const auto& bytes : communicator.all_gather(std::as_bytes(std::span(message)))) {
    if (bytes.empty()) continue;
    const std::string text(reinterpret_cast<const char*>(bytes.data()) + 1, bytes.size() - 1);
    if (static_cast<char>(bytes[0]) == 'i') throw InputError(text);
    throw std::runtime_error(text);
  }
}

}  // namespace scone
