// On a real device: that it opens, and the collectives of one rank.
#include <gtest/gtest.h>

#include <vector>

#include "collective_checks.h"
#include "device_memory.h"
#include "group_checks.h"
#include "parallel/cuda/device.h"
#include "parallel/cuda/staged_communicator.h"
#include "parallel/cuda/sum_slices.h"
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

TEST(SumSlices, InRankOrderRoundedOnce) {
  for (const int ranks : {1, 2, 3, 8})
    for (const std::size_t count :
         {std::size_t{1}, std::size_t{21}, std::size_t{4096}, std::size_t{3000000}})
      for (const int own : {0, ranks - 1}) {
        std::vector<std::vector<Bf16>> of_rank(static_cast<std::size_t>(ranks));
        std::vector<Bf16> others;
        for (int r = 0; r < ranks; ++r) {
          auto& values = of_rank[static_cast<std::size_t>(r)];
          for (std::size_t i = 0; i < count; ++i)
            values.push_back(to_bf16(1.0f / static_cast<float>(1 + (i * 7 + 13 * r) % 101)));
          if (r != own) others.insert(others.end(), values.begin(), values.end());
        }
        TestBuffer<Bf16> own_buffer(device_memory, of_rank[static_cast<std::size_t>(own)]);
        TestBuffer<Bf16> other_buffer(device_memory, others);
        cuda::sum_slices(own_buffer.span().data(), other_buffer.span().data(), own, ranks,
                         static_cast<std::int64_t>(count), own_buffer.span().data(),
                         cuda_device().compute());
        const auto sums = own_buffer.values();
        std::int64_t wrong = 0;
        for (std::size_t i = 0; i < count; ++i) {
          float sum = to_float(of_rank[0][i]);
          for (std::size_t r = 1; r < of_rank.size(); ++r) sum += to_float(of_rank[r][i]);
          wrong += sums[i] != to_bf16(sum);
        }
        EXPECT_EQ(wrong, 0) << "of " << count << " on " << ranks << " ranks";
      }
}

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
