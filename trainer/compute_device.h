#pragma once

#include <memory>
#include <string>

#include "model/ops/ops.h"
#include "parallel/communicator.h"
#include "trainer/run_config.h"

namespace scone {

/// What a run computes on.
struct ComputeDevice {
  Backend& backend;
  std::unique_ptr<Communicator> world;  // its tensor collectives are of the backend's device
  std::string description;              // "GPU 0 of 4, NVIDIA H100, 79.1 GiB", for the log
};

/// Opens the device that a run asks for, on this rank: of a node's GPUs the one of the rank's
/// number among the node's ranks, shared where there are fewer GPUs than ranks. host_world: all
/// ranks; must outlive the result. Collective over it. Throws InputError where the build or the
/// machine has no such device, or with nccl where ranks outnumber GPUs.
ComputeDevice open_compute_device(const RunConfig& config, Communicator& host_world);

}  // namespace scone
