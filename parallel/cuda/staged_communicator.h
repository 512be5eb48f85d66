#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace scone {

/// The ranks of `host`, whose tensor collectives take memory of cuda_device(): through pinned
/// buffers and the collectives of `host`. So several ranks may share a device, and results are
/// those of `host`. Each object holds up to 32 MiB of pinned memory, and start_* as much as its
/// buffers. The host waits for the compute stream in every tensor collective. All other collectives
/// are host's.
std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host);

}  // namespace scone
