#pragma once

#include "parallel/communicator.h"

namespace scone {

/// Asserts exact values of what a world can do beyond check_collectives: scattered and gathered
/// slices, pending collectives, groups split from it, and two threads a rank.
void check_groups(Communicator& world);

}  // namespace scone
