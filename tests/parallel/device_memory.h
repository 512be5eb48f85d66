#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "parallel/cuda/device.h"
#include "tests/parallel/test_buffer.h"

namespace scone {

/// What copies to the device that this thread has begun still read.
inline thread_local std::vector<cuda::PinnedBuffer> device_memory_sources;

/// Memory of cuda_device(), written and read in the compute stream's order. The host does not wait
/// for what is written, so that who uses it too early reads something else.
inline const TestMemory device_memory{
    [](std::size_t bytes) {
      cuda_device().make_current();
      void* pointer = nullptr;
      cuda::check(cudaMalloc(&pointer, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
      return pointer;
    },
    [](void* pointer) {
      // The stream may write it still. An error of another rank is not for a destructor to throw.
      while (cudaStreamQuery(cuda_device().compute()) == cudaErrorNotReady)
        std::this_thread::yield();
      cuda::check(cudaFree(pointer), "cudaFree");
    },
    [](void* to, const void* from, std::size_t bytes) {
      const cudaStream_t stream = cuda_device().compute();
      auto& source = device_memory_sources.emplace_back(bytes);
      std::memcpy(source.data(), from, bytes);
      cuda::check(cudaMemcpyAsync(to, source.data(), bytes, cudaMemcpyHostToDevice, stream),
                  "copy in");
    },
    [](void* to, const void* from, std::size_t bytes) {
      const cudaStream_t stream = cuda_device().compute();
      cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "copy out");
      cuda_device().wait(stream);
      device_memory_sources.clear();
    }};

}  // namespace scone
