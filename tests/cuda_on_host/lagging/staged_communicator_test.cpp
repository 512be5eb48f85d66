// Ranks are threads that share the device and its streams.
#include "parallel/cuda/staged_communicator.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <stdexcept>

#include "tests/parallel/collective_checks.h"
#include "tests/parallel/device_memory.h"
#include "tests/parallel/group_checks.h"

#if defined(__SANITIZE_ADDRESS__)
// What an error keeps from ending is leaked on purpose.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#endif

namespace scone {
namespace {

TEST(StagedCommunicator, OneRank) {
  open_cuda_device(0);
  const auto world = make_staged_communicator(make_self_communicator());
  EXPECT_TRUE(world->on_device());
  EXPECT_EQ(world->describe(), "self, device memory staged through the host");
  check_collectives(*world, device_memory);
  check_groups(*world, device_memory);
}

TEST(StagedCommunicator, RanksOfThreads) {
  open_cuda_device(0);
  run_as_threads(3, [](Communicator& host) {
    omp_set_num_threads(1);
    const auto world = make_staged_communicator(host.split(0, "world"));
    check_collectives(*world, device_memory);
    check_groups(*world, device_memory);
  });
}

// A rank that fails takes its buffers with it while copies and collectives are under way.
TEST(StagedCommunicator, GoesInAnException) {
  open_cuda_device(0);
  try {
    run_as_threads(2, [](Communicator& host) {
      const auto world = make_staged_communicator(host.split(0, "world"));
      TestBuffer<float> values(device_memory, std::vector<float>(100000, 1.0f));
      const auto pending = world->start_all_reduce_sum(values.span());
      if (world->rank() == 1) throw std::runtime_error("rank 1 has had enough");
      pending->wait();
      world->barrier();
    });
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "rank 1 has had enough");
  }
}

}  // namespace
}  // namespace scone
