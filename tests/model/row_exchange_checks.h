#pragma once

#include <cstdint>

#include "model/ops/ops.h"
#include "parallel/communicator.h"

namespace scone {

/// Expects exact rows, sums of gradients and bytes of RowExchange on random plans of several sizes
/// and cells, one object for all of them. Collective.
void check_row_exchange(Communicator& world, Backend& backend, std::uint64_t seed);

}  // namespace scone
