#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "parallel/cuda/device.h"

#ifndef SCONE_CUDA_ON_HOST
#include <atomic>
#endif

namespace scone::cuda {

/// What a kernel is started with: blocks (x first), threads of a block, bytes of dynamic shared
/// memory of a block.
struct LaunchShape {
  LaunchShape(std::int64_t blocks, int threads, std::size_t shared = 0)
      : grid{blocks, 1, 1}, block(static_cast<unsigned>(threads)), shared_bytes(shared) {}
  LaunchShape(std::int64_t blocks_x, std::int64_t blocks_y, std::int64_t blocks_z, dim3 threads,
              std::size_t shared = 0)
      : grid{blocks_x, blocks_y, blocks_z}, block(threads), shared_bytes(shared) {}

  std::int64_t grid[3];  // at most 2^31 - 1, 65535, 65535; 0 anywhere: nothing is started
  dim3 block;
  std::size_t shared_bytes;  // beyond 48 KiB as the device allows
};

namespace launch_detail {

template <auto kernel>
constexpr std::string_view pretty_name() {
  return __PRETTY_FUNCTION__;
}

/// "scone::cuda::norm_forward<float, 4>"
template <auto kernel>
std::string_view kernel_name() {
  std::string_view name = pretty_name<kernel>();
  name.remove_prefix(name.find("kernel = ") + 9);
  return name.substr(0, name.find_first_of(";]"));
}

template <auto kernel, class... Parameters>
void start(void (*)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
           std::type_identity_t<Parameters>... arguments) {
  const std::int64_t most[3] = {(std::int64_t{1} << 31) - 1, 65535, 65535};
  for (int axis = 0; axis < 3; ++axis) {
    if (shape.grid[axis] == 0) return;
    if (shape.grid[axis] < 0 || shape.grid[axis] > most[axis]) {
      throw std::logic_error("launch of " + std::string(kernel_name<kernel>()) + ": " +
                             std::to_string(shape.grid[axis]) + " blocks on axis " +
                             std::to_string(axis) + ", at most " + std::to_string(most[axis]));
    }
  }
  const dim3 grid(static_cast<unsigned>(shape.grid[0]), static_cast<unsigned>(shape.grid[1]),
                  static_cast<unsigned>(shape.grid[2]));
#ifdef SCONE_CUDA_ON_HOST
  (void)stream;
  const std::tuple<Parameters...> all(arguments...);
  cuda_on_host::run_grid(
      kernel_name<kernel>(), {grid.x, grid.y, grid.z},
      {shape.block.x, shape.block.y, shape.block.z}, shape.shared_bytes,
      [](const void* context) {
        std::apply(kernel, *static_cast<const std::tuple<Parameters...>*>(context));
      },
      &all);
#else
  const auto fail = [&](cudaError_t error) {
    check(error, ("launch of " + std::string(kernel_name<kernel>())).c_str());
  };
  constexpr std::size_t kSharedWithoutAsking = std::size_t{48} << 10;
  if (shape.shared_bytes > kSharedWithoutAsking) {
    // Set once for the largest size yet; devices of one process are of one kind and there is one.
    static std::atomic<std::size_t> allowed{0};
    std::size_t known = allowed.load();
    if (known < shape.shared_bytes) {
      const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(shape.shared_bytes));
      if (error != cudaSuccess) fail(error);
      while (known < shape.shared_bytes &&
             !allowed.compare_exchange_weak(known, shape.shared_bytes)) {
      }
    }
  }
  void* all[] = {static_cast<void*>(&arguments)..., nullptr};
  const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid,
                                             shape.block, all, shape.shared_bytes, stream);
  if (error != cudaSuccess) fail(error);
#endif
}

}  // namespace launch_detail

/// Starts a kernel on a stream, the one way in which kernels are started; returns at once.
/// `launch<norm_forward<T>>({rows, 256}, stream, x, y)`. Arguments are converted to the kernel's
/// parameter types. Throws CudaError that names the kernel; on the host what the kernel throws.
template <auto kernel, class... Arguments>
void launch(const LaunchShape& shape, cudaStream_t stream, const Arguments&... arguments) {
  launch_detail::start<kernel>(kernel, shape, stream, arguments...);
}

}  // namespace scone::cuda

/// The same as a macro; a kernel with commas in its name stands in parentheses.
#define SCONE_LAUNCH(kernel, shape, stream, ...) \
  ::scone::cuda::launch<(kernel)>(shape, stream, __VA_ARGS__)
