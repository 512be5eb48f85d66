#include "trainer/compute_device.h"

#include "parallel/error.h"

#ifdef SCONE_HAS_CUDA

#include "model/ops/cuda/cuda_backend.h"
#include "parallel/cuda/device.h"
#include "parallel/cuda/staged_communicator.h"
#endif
#ifdef SCONE_HAS_NCCL
#include "parallel/cuda/nccl_communicator.h"
#endif

namespace scone {

ComputeDevice open_compute_device(const RunConfig& config, Communicator& host_world) {
  std::unique_ptr<Communicator> world = host_world.split(0, host_world.name());
#ifdef SCONE_HAS_CUDA
  if (config.compute.device == Device::cpu)
    return {cpu_backend(), std::move(world), describe_device()};
  const NodePlace place = mpi_node_place();
  open_cuda_device(place.rank, host_world.rank());
  if (config.parallel.communicator == Transport::mpi)
    return {cuda_backend(), make_staged_communicator(std::move(world)), describe_device()};
#ifdef SCONE_HAS_NCCL
  return {cuda_backend(), make_nccl_communicator(std::move(world)), describe_device()};
#else
  throw InputError("parallel.communicator: nccl, but this build has no NCCL; use mpi");
#endif
#else
  if (config.compute.device == Device::cpu)
    return {cpu_backend(), std::move(world), "cpu: this build has no CUDA"};
  throw InputError("compute.device: cuda, but this build has no CUDA; use cpu");
#endif
}

}  // namespace scone
