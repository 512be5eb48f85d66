#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace cuda_on_host {

/// What the host's CUDA runtime says, for tests to change. Not for use by several threads at once.
struct RuntimeState {
  int devices = 1;
  cudaError_t count_error = cudaSuccess;  // of cudaGetDeviceCount
  int driver_version = 13000, runtime_version = 13000;
  int major = 9, minor = 0, multiprocessors = 3;
  std::size_t total_memory = std::size_t{16} << 30;
  std::size_t free_memory = std::size_t{16} << 30;  // the largest allocation that succeeds
  std::int64_t polls_until_done = 0;     // queries of events and streams that say "not ready" first
  std::int64_t event_queries = 0;        // so far
  cudaError_t work_error = cudaSuccess;  // of all that comes to queries
};
RuntimeState& runtime_state();

}  // namespace cuda_on_host
