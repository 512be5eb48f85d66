#pragma once

#include "parallel/communicator.h"
#include "test_buffer.h"

namespace scone {

/// Asserts exact values of what a world can do beyond check_collectives: scattered and gathered
/// slices, pending collectives, groups split from it, and two threads a rank. memory: what its
/// tensor collectives work in.
void check_groups(Communicator& world, const TestMemory& memory = host_memory);
/// Asserts that a watchdog tells of a wait of rank 0 for late ranks in every kind of collective.
/// Two ranks or more.
void check_waits_are_watched(Communicator& world);

}  // namespace scone
