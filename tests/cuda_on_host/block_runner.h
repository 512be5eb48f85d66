#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

/// Runs kernels on the host, for tests. Every thread of a block is a fiber that runs until it waits
/// at a barrier or a warp operation; blocks, and threads that could run, come in random order, so
/// that results which depend on an order show. Not a performance model.
namespace cuda_on_host {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMostThreads = 1024;

struct Extent {
  unsigned x = 1, y = 1, z = 1;
};

/// What a kernel did wrong: a barrier that not all threads reach, a shuffle from a lane outside its
/// mask, a trap. The message names kernel, block, thread, source line and seed.
class BlockError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Runs body(context) once for each thread of the grid, with threadIdx, blockIdx, blockDim and
/// gridDim set. Shared memory is filled with 0xFF bytes (NaN) before each block. Throws BlockError;
/// what a kernel throws passes through.
void run_grid(std::string_view kernel, Extent grid, Extent block, std::size_t dynamic_shared_bytes,
              void (*body)(const void* context), const void* context);

/// Names of all kernels that were run, with template arguments.
std::set<std::string> launched_kernels();

/// Seed of the orders: the environment's SCONE_CUDA_ON_HOST_SEED, else 1.
std::uint64_t order_seed();

// For the running thread of a kernel.

enum class WarpOperation : std::uint8_t { sync, shuffle, ballot };

/// __syncthreads: throws BlockError where threads of the block are done or wait at another line.
void block_barrier(const std::source_location& where);
/// Waits for all lanes of mask. shuffle: the value of lane `source`; ballot: mask of lanes whose
/// value is not 0.
std::uint64_t warp_operation(WarpOperation operation, std::uint32_t mask, std::uint64_t value,
                             unsigned source, const std::source_location& where);
unsigned lane_of_thread();
[[noreturn]] void fail(const std::string& what, const std::source_location& where);

/// The block's shared memory with this tag, a heap block of exactly so many bytes, made by the
/// first thread that asks.
void* static_shared(const void* tag, std::size_t bytes);
void* dynamic_shared();

}  // namespace cuda_on_host
