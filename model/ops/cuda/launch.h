#pragma once

// Kernels of parallel/cuda are started in the same way.
#include "parallel/cuda/launch.h"
