// Ranks are threads that share the device and its streams, and each think themselves on a node of
// their own.
#include "parallel/cuda/nccl_communicator.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cstdio>
#include <stdexcept>
#include <string>

#include "fake_nccl.h"
#include "parallel/error.h"
#include "tests/parallel/collective_checks.h"
#include "tests/parallel/device_memory.h"
#include "tests/parallel/group_checks.h"

namespace {
thread_local int node = 0;
}  // namespace

// In place of the C library's.
extern "C" int gethostname(char* name, std::size_t length) {
  std::snprintf(name, length, "node%d", node);
  return 0;
}

namespace scone {
namespace {

void run_on_nodes(int ranks, const std::function<void(Communicator&)>& body) {
  open_cuda_device(0);
  run_as_threads(ranks, [&](Communicator& host) {
    omp_set_num_threads(1);
    node = host.rank();
    const auto world = make_nccl_communicator(host.split(0, "world"));
    body(*world);
  });
}

TEST(NcclCommunicator, Collectives) {
  for (const int ranks : {1, 2, 5}) {
    const int destroyed = fake_nccl::destroyed();
    run_on_nodes(ranks, [&](Communicator& world) {
      EXPECT_TRUE(world.on_device());
      EXPECT_EQ(world.describe(), "NCCL 2.28.9, " + std::to_string(ranks) +
                                      " ranks; host: " + std::to_string(ranks) + " threads");
      check_collectives(world, device_memory);
    });
    EXPECT_EQ(fake_nccl::destroyed(), destroyed + ranks);
  }
  EXPECT_EQ(fake_nccl::aborted(), 0);
}

TEST(NcclCommunicator, Groups) {
  for (const int ranks : {1, 3})
    run_on_nodes(ranks, [](Communicator& world) { check_groups(world, device_memory); });
  EXPECT_EQ(fake_nccl::aborted(), 0);
}

TEST(NcclCommunicator, RanksThatShareADeviceAreTold) {
  open_cuda_device(0);
  run_as_threads(3, [](Communicator& host) {
    node = host.rank() / 2;
    try {
      make_nccl_communicator(host.split(0, "world"));
      FAIL() << "nothing was thrown";
    } catch (const InputError& error) {
      EXPECT_STREQ(error.what(),
                   "parallel.communicator is nccl, which needs a GPU for every rank, but node "
                   "node0 has 2 ranks on 1 GPUs: set parallel.communicator: mpi, or start 1 ranks "
                   "a node");
    }
  });
}

// An error that NCCL's own threads find is thrown by the next collective, and by whoever waits for
// the device.
TEST(NcclCommunicator, ErrorsThatTurnUpLaterAreThrown) {
  for (const bool waits : {false, true}) {
    const int aborted = fake_nccl::aborted();
    run_on_nodes(1, [&](Communicator& world) {
      const auto group = world.split(0, "group");
      TestBuffer<float> values(device_memory, std::vector<float>(3000, 1.0f));
      const auto pending = world.start_all_reduce_sum(values.span());
      fake_nccl::fail_all(ncclRemoteError);
      std::string message = "nothing was thrown";
      try {
        if (waits) {
          // The stream lags, so that some look is long enough for the check.
          for (int i = 0; i < 300; ++i) {
            TestBuffer<float> more(device_memory, std::vector<float>(10));
            cuda_device().wait(cuda_device().compute());
          }
        } else {
          world.all_reduce(values.span(), ReduceOp::sum);
        }
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      EXPECT_EQ(message,
                "rank 0: collective of world (rank 0 alone): NCCL: remote process exited or there "
                "was a network error: what NCCL adds");
      // At once, since freeing memory of the device would wait for their work on it.
      EXPECT_EQ(fake_nccl::aborted(), aborted + 2);
      message = "nothing was thrown";
      try {
        group->all_reduce(values.span(), ReduceOp::sum);
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      EXPECT_EQ(
          message,
          "rank 0: collective of group (rank 0 alone): NCCL was ended after an earlier error");
    });
    EXPECT_EQ(fake_nccl::aborted(), aborted + 2);
  }
}

TEST(NcclCommunicator, AFailingRankAbortsItsGroups) {
  const int aborted = fake_nccl::aborted();
  try {
    run_on_nodes(2, [](Communicator& world) {
      const auto group = world.split(0, "group");
      if (world.rank() == 1) throw std::runtime_error("rank 1 has had enough");
      TestBuffer<float> values(device_memory, std::vector<float>(3000, 1.0f));
      group->all_reduce(values.span(), ReduceOp::sum);
    });
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "rank 1 has had enough");
  }
  EXPECT_EQ(fake_nccl::aborted(), aborted + 4);
}

}  // namespace
}  // namespace scone
