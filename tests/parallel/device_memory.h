#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "parallel/cuda/device.h"
#include "test_buffer.h"

namespace scone {

/// Memory of cuda_device(), written and read in the compute stream's order.
inline const TestMemory device_memory{
    [](std::size_t bytes) {
      cuda_device().make_current();
      void* pointer = nullptr;
      cuda::check(cudaMalloc(&pointer, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
      return pointer;
    },
    [](void* pointer) { cuda::check(cudaFree(pointer), "cudaFree"); },
    [](void* to, const void* from, std::size_t bytes) {
      const cudaStream_t stream = cuda_device().compute();
      cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "copy in");
      cuda_device().wait(stream);
    },
    [](void* to, const void* from, std::size_t bytes) {
      const cudaStream_t stream = cuda_device().compute();
      cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "copy out");
      cuda_device().wait(stream);
    }};

}  // namespace scone
