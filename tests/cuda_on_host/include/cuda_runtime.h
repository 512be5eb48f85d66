#pragma once

// Stands for CUDA's header where kernels are compiled for the host (see ../block_runner.h).

#define SCONE_CUDA_ON_HOST 1

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// There is no __shared__: SCONE_SHARED and dynamic_shared() of model/ops/cuda/kernel_tools.h serve.

#include "device_functions.h"
#include "runtime_api.h"
#include "vector_types.h"
