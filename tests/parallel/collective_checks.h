#pragma once

#include "parallel/communicator.h"

namespace scone {

/// Asserts exact values of every collective on this rank; used on each kind of communicator.
void check_collectives(Communicator& communicator);
/// The same for FgramExchange, against what one rank would compute alone.
void check_fgram_exchange(Communicator& communicator);

}  // namespace scone
