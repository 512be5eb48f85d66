#pragma once

#include "parallel/communicator.h"

namespace scone {

/// Asserts exact values of every collective on this rank; used on each kind of communicator.
void check_collectives(Communicator& communicator);

}  // namespace scone
