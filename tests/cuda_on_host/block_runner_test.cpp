// The runner of kernels itself: what it computes, and that it catches what kernels do wrong.
#include "block_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "model/ops/cuda/kernel_tools.h"
#include "parallel/cuda/launch.h"

namespace scone::cuda {
namespace {

using cuda_on_host::BlockError;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

__global__ void write_index(std::int64_t* out) {
  const std::int64_t block =
      blockIdx.x + std::int64_t{gridDim.x} * (blockIdx.y + std::int64_t{gridDim.y} * blockIdx.z);
  const std::int64_t threads = std::int64_t{blockDim.x} * blockDim.y * blockDim.z;
  const std::int64_t thread =
      threadIdx.x +
      std::int64_t{blockDim.x} * (threadIdx.y + std::int64_t{blockDim.y} * threadIdx.z);
  out[block * threads + thread] += block * threads + thread;
}

TEST(BlockRunner, EveryThreadRunsOnce) {
  std::vector<std::int64_t> out(5 * 3 * 2 * 4 * 3 * 2), expected(out.size());
  std::iota(expected.begin(), expected.end(), 0);
  launch<write_index>({5, 3, 2, dim3(4, 3, 2)}, nullptr, out.data());
  EXPECT_EQ(out, expected);
  for (const int threads : {1, 33, 1024}) {
    out.assign(static_cast<std::size_t>(threads), 0);
    expected.resize(out.size());
    std::iota(expected.begin(), expected.end(), 0);
    launch<write_index>({1, threads}, nullptr, out.data());
    EXPECT_EQ(out, expected);
  }
}

TEST(BlockRunner, RefusesBlocksAndGridsThatDoNotExist) {
  std::int64_t out = 0;
  EXPECT_THROW(launch<write_index>({1, 1025}, nullptr, &out), std::invalid_argument);
  EXPECT_THROW(launch<write_index>({1, 65536, 1, dim3(1)}, nullptr, &out), std::logic_error);
  launch<write_index>({0, 32}, nullptr, &out);
  EXPECT_EQ(out, 0);
}

__global__ void sums(const float* x, float* out, int* votes) {
  const float mine = x[threadIdx.x];
  out[threadIdx.x] = block_sum(mine);
  const unsigned odd = __ballot_sync(kAllLanes, static_cast<int>(mine) % 2);
  const float other = __shfl_sync(0x55555555U << lane_index() % 2, mine, lane_index() % 2 + 2);
  if (threadIdx.x == 0) {
    votes[0] = std::popcount(odd);
    votes[1] = static_cast<int>(other);
  }
}

TEST(BlockRunner, SumsVotesAndShuffles) {
  constexpr int kThreads = 96;
  std::vector<float> x(kThreads), out(kThreads);
  std::iota(x.begin(), x.end(), 0.0F);
  std::vector<int> votes(2);
  for (int repeat = 0; repeat < 20; ++repeat) {
    launch<sums>({1, kThreads}, nullptr, x.data(), out.data(), votes.data());
    for (const float value : out) EXPECT_EQ(value, 95 * 96 / 2);
    EXPECT_THAT(votes, ::testing::ElementsAre(16, 2));
  }
}

/// Reverses x within a block by way of shared memory.
template <bool kBarrier, int kRoom>
__global__ void reverse(const float* x, float* out) {
  SCONE_SHARED(float, tile, [kRoom]);
  float* const moving = tile;  // as a pointer, so that the array's bound is not known
  moving[threadIdx.x] = x[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = moving[blockDim.x - 1 - threadIdx.x];
}

int wrong_in_reverse(void (*run)(const float*, float*)) {
  std::vector<float> x(128), out(128);
  std::iota(x.begin(), x.end(), 0.0F);
  run(x.data(), out.data());
  int wrong = 0;
  for (std::size_t i = 0; i < x.size(); ++i) wrong += out[i] == x[x.size() - 1 - i] ? 0 : 1;
  return wrong;
}

TEST(BlockRunner, AMissingBarrierShows) {
  const auto right = [](const float* x, float* out) {
    launch<reverse<true, 128>>({1, 128}, nullptr, x, out);
  };
  const auto wrong = [](const float* x, float* out) {
    launch<reverse<false, 128>>({1, 128}, nullptr, x, out);
  };
  for (int repeat = 0; repeat < 20; ++repeat) {
    EXPECT_EQ(wrong_in_reverse(right), 0);
    EXPECT_GT(wrong_in_reverse(wrong), 0);
  }
}

/// A buffer used twice; the second write must wait until all have read the first.
template <bool kBarrier>
__global__ void reuse(float* out) {
  SCONE_SHARED(float, buffer, [64]);
  float sum = 0;
  for (int turn = 0; turn < 2; ++turn) {
    buffer[threadIdx.x] = static_cast<float>(turn);
    __syncthreads();
    sum += buffer[63 - threadIdx.x];
    if (kBarrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

TEST(BlockRunner, AMissingBarrierBehindARepeatedReadShows) {
  std::vector<float> out(64);
  int wrong = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    launch<reuse<true>>({1, 64}, nullptr, out.data());
    for (const float value : out) ASSERT_EQ(value, 1);
    launch<reuse<false>>({1, 64}, nullptr, out.data());
    for (const float value : out) wrong += value == 1 ? 0 : 1;
  }
  EXPECT_GT(wrong, 0);
}

/// Within a warp, too, nothing is ordered without __syncwarp.
template <bool kBarrier>
__global__ void rotate_in_warp(int* out) {
  SCONE_SHARED(int, buffer, [32]);
  buffer[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarrier) __syncwarp();
  out[threadIdx.x] = buffer[(threadIdx.x + 1) % 32];
}

TEST(BlockRunner, AMissingWarpBarrierShows) {
  std::vector<int> out(32), wrong(32);
  launch<rotate_in_warp<true>>({1, 32}, nullptr, out.data());
  launch<rotate_in_warp<false>>({1, 32}, nullptr, wrong.data());
  for (int i = 0; i < 32; ++i) EXPECT_EQ(out[static_cast<std::size_t>(i)], (i + 1) % 32);
  EXPECT_NE(out, wrong);
}

__global__ void sum_uninitialised(float* out) {
  SCONE_SHARED(float, buffer, [32]);
  if (threadIdx.x < 31) buffer[threadIdx.x] = 1;
  __syncthreads();
  float sum = 0;
  for (const float value : buffer) sum += value;
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

TEST(BlockRunner, UninitialisedSharedMemoryIsNan) {
  std::vector<float> out(3);
  launch<sum_uninitialised>({3, 32}, nullptr, out.data());
  for (const float value : out) EXPECT_TRUE(std::isnan(value));
}

__global__ void half_a_barrier() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void half_a_shuffle(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1);
}
__global__ void shuffle_from_outside(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xFFFFU, 1, 16);
}
__global__ void mixed_operations(int* out) {
  out[threadIdx.x] = threadIdx.x < 16 ? __shfl_xor_sync(kAllLanes, 1, 1) : __any_sync(kAllLanes, 1);
}
__global__ void lanes_beyond_the_block() { __syncwarp(); }
__global__ void traps() { __trap(); }

TEST(BlockRunner, DivergentBarriersAreErrors) {
  std::vector<int> out(64);
  for (int repeat = 0; repeat < 10; ++repeat) {
    EXPECT_THAT(
        [] {
          launch<half_a_barrier>({2, 64}, nullptr);
        },
        ThrowsMessage<BlockError>(
            AllOf(HasSubstr("half_a_barrier"), HasSubstr("block_runner_test.cpp"))));
    EXPECT_THAT(
        [] {
          launch<two_barriers>({1, 64}, nullptr);
        },
        ThrowsMessage<BlockError>(HasSubstr("not all threads reach")));
    EXPECT_THAT(
        [&] {
          launch<half_a_shuffle>({1, 64}, nullptr, out.data());
        },
        ThrowsMessage<BlockError>(HasSubstr("no thread can go on")));
    EXPECT_THAT(
        [&] {
          launch<shuffle_from_outside>({1, 32}, nullptr, out.data());
        },
        ThrowsMessage<BlockError>(HasSubstr("does not name")));
    EXPECT_THAT(
        [&] {
          launch<mixed_operations>({1, 32}, nullptr, out.data());
        },
        ThrowsMessage<BlockError>(HasSubstr("another warp operation")));
    EXPECT_THAT(
        [] {
          launch<lanes_beyond_the_block>({1, 40}, nullptr);
        },
        ThrowsMessage<BlockError>(HasSubstr("block does not have")));
    EXPECT_THAT(
        [] {
          launch<traps>({1, 40}, nullptr);
        },
        ThrowsMessage<BlockError>(HasSubstr("trap")));
  }
  EXPECT_EQ(wrong_in_reverse([](const float* x, float* y) {
              launch<reverse<true, 128>>({1, 128}, nullptr, x, y);
            }),
            0)
      << "after errors";
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void one_too_many(float* out) { out[threadIdx.x + 1] = 0; }
__global__ void dynamic_one_too_many() {
  auto* const buffer = dynamic_shared<float>();
  __syncthreads();
  buffer[threadIdx.x + 1] = 0;
}

TEST(BlockRunnerDeathTest, OverrunsOfMemoryAreErrors) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  std::vector<float> x(128), out(128);
  EXPECT_DEATH((launch<reverse<true, 127>>({1, 128}, nullptr, x.data(), out.data())),
               "heap-buffer-overflow");
  EXPECT_DEATH((launch<dynamic_one_too_many>({1, 64, 64 * sizeof(float)}, nullptr)),
               "heap-buffer-overflow");
  EXPECT_DEATH(
      {
        void* device = nullptr;
        (void)cudaMalloc(&device, 32 * sizeof(float));
        launch<one_too_many>({1, 32}, nullptr, static_cast<float*>(device));
      },
      "heap-buffer-overflow");
}

/// An index beyond an array of the kernel's own or a row of a shared tile.
__global__ void beyond_a_row(int column) {
  SCONE_SHARED(float, tile, [4][4]);
  tile[threadIdx.x][column] = 0;
}

TEST(BlockRunnerDeathTest, IndicesBeyondARowAreErrors) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  launch<beyond_a_row>({1, 4}, nullptr, 3);
  EXPECT_DEATH((launch<beyond_a_row>({1, 4}, nullptr, 4)), "out of bounds");
}
#endif

TEST(BlockRunner, NamesKernelsWithTheirTemplateArguments) {
  launch<rotate_in_warp<true>>({1, 32}, nullptr, std::vector<int>(32).data());
  EXPECT_THAT(cuda_on_host::launched_kernels(),
              ::testing::Contains(::testing::EndsWith("rotate_in_warp<true>")));
}

}  // namespace
}  // namespace scone::cuda
