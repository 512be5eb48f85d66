// On a real device: that it opens, and the collectives of one rank.
#include <gtest/gtest.h>

#include <vector>

#include "collective_checks.h"
#include "group_checks.h"
#include "parallel/cuda/device.h"
#include "parallel/cuda/staged_communicator.h"
#include "tests/parallel/device_memory.h"
#include "tests/parallel/sum_slices_checks.h"
#ifdef SCONE_HAS_NCCL
#include "parallel/cuda/nccl_communicator.h"
#endif

namespace scone {
namespace {

TEST(CudaDevice, IsOpen) {
  const CudaDevice& device = cuda_device();
  EXPECT_LT(device.index(), device.count());
  EXPECT_GT(device.multiprocessors(), 0);
  EXPECT_GT(device.free_memory(), 0u);
  EXPECT_LE(device.free_memory(), device.total_memory());
  EXPECT_NE(device.compute(), device.communication());
  EXPECT_NE(device.compute(), device.copy());
  EXPECT_EQ(describe_device().substr(0, 6), "cuda, ");
}

TEST(SmallSumSlices, InRankOrderRoundedOnce) { check_sum_slices({1, 21, 4096}); }
TEST(SumSlices, InRankOrderRoundedOnce) { check_sum_slices({3000000}); }

TEST(StagedCommunicator, OneRank) {
  const auto world = make_staged_communicator(make_self_communicator());
  EXPECT_TRUE(world->on_device());
  check_collectives(*world, device_memory);
  check_groups(*world, device_memory);
}

#ifdef SCONE_HAS_NCCL
TEST(NcclCommunicator, OneRank) {
  const auto world = make_nccl_communicator(make_self_communicator());
  EXPECT_TRUE(world->on_device());
  EXPECT_EQ(world->describe().substr(0, 5), "NCCL ");
  check_collectives(*world, device_memory);
  check_groups(*world, device_memory);
}

// An error elsewhere takes the communicator down with work under way, and the next one works.
TEST(NcclCommunicator, GoesInAnException) {
  const std::vector<float> values(1000000, 1.0f);
  try {
    const auto world = make_nccl_communicator(make_self_communicator());
    TestBuffer<float> buffer(device_memory, values);
    const auto pending = world->start_all_reduce_sum(buffer.span());
    throw std::runtime_error("elsewhere");
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "elsewhere");
  }
  const auto world = make_nccl_communicator(make_self_communicator());
  check_bf16_collectives(*world, device_memory);
  world->cancel();
  TestBuffer<float> buffer(device_memory, values);
  EXPECT_THROW(world->all_reduce(buffer.span(), ReduceOp::sum), std::runtime_error);
}
#endif

}  // namespace
}  // namespace scone
