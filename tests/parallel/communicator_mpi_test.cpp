#include <gtest/gtest.h>
#include <omp.h>

#include <chrono>
#include <thread>

#include "collective_checks.h"
#include "group_checks.h"

namespace scone {
namespace {

TEST(MpiCommunicator, CollectivesAndExchange) {
  const auto world = make_mpi_communicator();
  check_collectives(*world);
}

TEST(MpiCommunicator, Groups) {
  omp_set_num_threads(1);
  const auto world = make_mpi_communicator();
  check_groups(*world);
}

// All ranks of a test run are on one node.
TEST(MpiCommunicator, PlaceOnTheNode) {
  const auto world = make_mpi_communicator();
  const NodePlace place = mpi_node_place();
  EXPECT_EQ(place.rank, world->rank());
  EXPECT_EQ(place.size, world->size());
}

TEST(MpiCommunicator, EveryCollectiveIsWatched) {
  const auto world = make_mpi_communicator();
  if (world->size() > 1) check_waits_are_watched(*world);
}

TEST(MpiCommunicator, RanksThatDisagreeAreTold) {
  const auto world = make_mpi_communicator();
  // Every rank sends one element to each, and expects two of rank 0.
  const auto ranks = static_cast<std::size_t>(world->size());
  const std::vector<std::int64_t> counts(ranks, 1);
  auto wrong = counts;
  if (world->rank() != 0) wrong[0] = 2;
  std::vector<std::byte> sent(ranks), received(ranks + (world->rank() == 0 ? 0 : 1));
  if (world->rank() == 0) {
    world->all_to_all(sent, counts, received, wrong, 1);
  } else {
    try {
      world->all_to_all(sent, counts, received, wrong, 1);
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find(": rank 0 sent 1 bytes, expected 2"),
                std::string::npos)
          << error.what();
    }
  }
  world->barrier();
}

// Rank 0 waits for ranks that never come, from a thread of its own, until that is cancelled. What
// it has sent is small enough to need no receiver, so that MPI can still be finalised.
TEST(MpiCommunicator, CancelEndsAWait) {
  const auto world = make_mpi_communicator();
  const auto group = world->split(0, "batch stream");
  if (world->size() == 1) {  // which waits for nobody
    group->cancel();
    EXPECT_EQ(group->all_gather({}).size(), 1u);
  } else if (world->rank() == 0) {
    std::string error = "nothing was thrown";
    std::thread waiting([&] {
      const std::vector<std::int64_t> counts(static_cast<std::size_t>(group->size()), 1);
      std::vector<std::byte> sent(counts.size()), received(counts.size());
      try {
        group->all_to_all(sent, counts, received, counts, 1);
      } catch (const std::runtime_error& caught) {
        error = caught.what();
      }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    group->cancel();
    waiting.join();
    EXPECT_EQ(error.substr(0, 38), "rank 0: all_to_all of batch stream (ra");
    EXPECT_EQ(error.substr(error.size() - 12), "): cancelled") << error;
    // Later waits throw too.
    EXPECT_THROW(group->all_gather({}), std::runtime_error);
  }
  world->barrier();
}

}  // namespace
}  // namespace scone
