#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace scone {

/// The ranks of `host`, each with a device of its own (cuda_device(), opened before), whose tensor
/// collectives are NCCL's, on the device's communication stream: they return when they are in the
/// streams' order, before they are done. All other collectives, and the meeting of the ranks, are
/// host's. Sums are in an order that depends on the layout alone; of Bf16 they are in rank order,
/// in fp32. NCCL's errors, also those that turn up later while the device is waited for, are
/// exceptions that name this rank; the group's work on the device is then aborted when the object
/// goes. Collective. Throws InputError where several ranks share a device.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host);

}  // namespace scone
