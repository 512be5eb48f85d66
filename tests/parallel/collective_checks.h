#pragma once

#include "parallel/communicator.h"
#include "test_buffer.h"

namespace scone {

/// Asserts exact values of every collective on this rank; used on each kind of communicator.
/// memory: what its tensor collectives work in.
void check_collectives(Communicator& communicator, const TestMemory& memory = host_memory);
/// The same of the collectives of Bf16, with sums that only fp32 in between gets right.
void check_bf16_collectives(Communicator& communicator, const TestMemory& memory = host_memory);

}  // namespace scone
