#include "trainer/compute_device.h"

#include "parallel/error.h"

#ifdef SCONE_HAS_CUDA
#include "model/ops/cuda/cuda_backend.h"
#include "parallel/cuda/device.h"
#include "parallel/cuda/nccl_communicator.h"
#include "parallel/cuda/staged_communicator.h"
#endif

namespace scone {

bool built_with_cuda() {
#ifdef SCONE_HAS_CUDA
  return true;
#else
  return false;
#endif
}

bool built_with_nccl() {
#ifdef SCONE_HAS_NCCL
  return true;
#else
  return false;
#endif
}

ComputeDevice open_compute_device(const RunConfig& config, Communicator& host_world) {
  std::unique_ptr<Communicator> world = host_world.split(0, host_world.name());
  if (config.compute.device == Device::cpu) return {cpu_backend(), std::move(world), "processor"};
  throw InputError("compute.device: cuda, but this build has no CUDA");
}

}  // namespace scone
