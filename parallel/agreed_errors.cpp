#include "parallel/agreed_errors.h"

#include <exception>
#include <span>
#include <stdexcept>
#include <string>

#include "parallel/error.h"

namespace scone {

void run_agreed(Communicator& group, const std::function<void()>& body) {
  if (group.size() == 1) {
    body();
    return;
  }
  std::string outcome;  // the kind of error and its message; empty: none
  try {
    body();
  } catch (const InputError& error) {
    outcome = std::string("i") + error.what();
  } catch (const std::exception& error) {
    outcome = std::string("r") + error.what();
  }
  for (const auto& of_rank : group.all_gather(std::as_bytes(std::span(outcome)))) {
    if (of_rank.empty()) continue;
    const std::string message(reinterpret_cast<const char*>(of_rank.data()), of_rank.size());
    if (message[0] == 'i') throw InputError(message.substr(1));
    throw std::runtime_error(message.substr(1));
  }
}

}  // namespace scone
