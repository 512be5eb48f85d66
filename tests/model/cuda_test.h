#pragma once

#include "model/ops/cuda/cuda_backend.h"

namespace scone {

/// The backend of a test program that runs on a GPU, or with kernels on the host. The program opens
/// the device of its rank; where it has not, number 0 is opened.
inline CudaBackend& test_cuda_backend() {
  if (!cuda_device_is_open()) open_cuda_device(0);
  return cuda_backend();
}

}  // namespace scone
