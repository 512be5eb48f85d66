#pragma once

#include <gtest/gtest.h>

#include "model/ops/cuda/cuda_backend.h"

namespace scone {

/// Opens the device for a test program of one process.
inline CudaBackend& open_test_device() {
  open_cuda_device(0);
  return cuda_backend();
}

/// First in a test that works on the CUDA device.
#define SKIP_WITHOUT_CUDA()                                                     \
  if (const std::string reason = cuda::unavailable_reason(); !reason.empty()) { \
    GTEST_SKIP() << "skipped: no CUDA device: " << reason;                      \
  }                                                                             \
  open_test_device()

}  // namespace scone
