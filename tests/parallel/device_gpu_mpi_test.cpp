// Several ranks on real devices; staged through the host they may share one.
#include <gtest/gtest.h>

#include "collective_checks.h"
#include "group_checks.h"
#include "parallel/cuda/staged_communicator.h"
#include "parallel/error.h"
#include "tests/parallel/device_memory.h"
#ifdef SCONE_HAS_NCCL
#include "parallel/cuda/nccl_communicator.h"
#endif

namespace scone {
namespace {

TEST(StagedCommunicator, CollectivesOfRanks) {
  const auto world = make_staged_communicator(make_mpi_communicator());
  check_collectives(*world, device_memory);
  check_groups(*world, device_memory);
}

#ifdef SCONE_HAS_NCCL
TEST(NcclCommunicator, CollectivesOfRanks) {
  auto host = make_mpi_communicator();
  const int ranks = host->size(), devices = cuda_device().count();
  if (ranks <= devices) {
    const auto world = make_nccl_communicator(std::move(host));
    check_collectives(*world, device_memory);
    check_groups(*world, device_memory);
    return;
  }
  try {
    make_nccl_communicator(std::move(host));
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    const std::string message = error.what();
    EXPECT_NE(
        message.find(" has " + std::to_string(ranks) + " ranks on " + std::to_string(devices) +
                     " GPUs: set parallel.communicator: mpi, or start " + std::to_string(devices) +
                     " ranks a node"),
        std::string::npos)
        << message;
  }
}
#endif

}  // namespace
}  // namespace scone
