#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "parallel/bf16.h"

namespace scone::cuda {

/// out[i] = the sum over ranks, in their order, of each rank's element i, in fp32, rounded once.
/// The rank `own`'s elements are at own_slice, the others' at others, one rank after another,
/// `count` each. out may be own_slice.
void sum_slices(const Bf16* own_slice, const Bf16* others, int own, int ranks, std::int64_t count,
                Bf16* out, cudaStream_t stream);

}  // namespace scone::cuda
