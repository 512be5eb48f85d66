#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace scone {

/// The ranks of `host`, each with a device of its own (cuda_device(), opened before), whose tensor
/// collectives are NCCL's, on the device's communication stream: they return when they are in the
/// streams' order, before they are done. All other collectives, and the meeting of the ranks, are
/// host's. Sums of Bf16 are in rank order, in fp32; those of float in an order that NCCL chooses by
/// the group's devices and links too, so two groups of as many ranks may round differently. NCCL's
/// errors, also those that turn up later while the device is waited for, are exceptions that name
/// this rank; the work on the device of this communicator and of all that are split from it, or
/// that it is split from, is aborted before. Collective. Throws InputError where several ranks
/// share a device.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host);

}  // namespace scone
