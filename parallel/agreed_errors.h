#pragma once

#include <functional>

#include "parallel/communicator.h"

namespace scone {

/// Runs `body`, which is not collective, on every rank. Where it threw on some, every rank throws
/// the error of the lowest of them (an InputError, or a std::runtime_error), so that none waits for
/// one that has left. Collective over the group.
void run_agreed(Communicator& group, const std::function<void()>& body);

}  // namespace scone
