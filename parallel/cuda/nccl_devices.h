#pragma once

#include "parallel/communicator.h"

namespace scone {

/// Throws InputError, on every rank of `host` alike, where ranks share a device, which NCCL does
/// not allow. Collective.
void check_one_rank_a_device(Communicator& host);

}  // namespace scone
