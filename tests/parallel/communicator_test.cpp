#include "parallel/communicator.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "collective_checks.h"
#include "group_checks.h"

namespace scone {
namespace {

TEST(SelfCommunicator, CollectivesAndExchange) {
  const auto self = make_self_communicator();
  check_collectives(*self);
  check_fgram_exchange(*self);
}

TEST(SelfCommunicator, Groups) {
  const auto self = make_self_communicator();
  check_groups(*self);
  self->cancel();
  self->barrier();
}

TEST(ThreadCommunicator, CollectivesAndExchange) {
  for (const int ranks : {1, 2, 3, 5, 8}) {
    run_as_threads(ranks, [](Communicator& communicator) {
      check_collectives(communicator);
      check_fgram_exchange(communicator);
    });
  }
}

TEST(ThreadCommunicator, Groups) {
  for (const int ranks : {1, 2, 3, 5, 8}) {
    run_as_threads(ranks, [](Communicator& world) {
      omp_set_num_threads(1);
      check_groups(world);
    });
  }
}

/// What run_as_threads throws.
std::string error_of(int ranks, const std::function<void(Communicator&)>& body) {
  try {
    run_as_threads(ranks, body);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(ThreadCommunicator, AFailingRankEndsTheOthers) {
  EXPECT_EQ(error_of(3,
                     [](Communicator& communicator) {
                       if (communicator.rank() == 1)
                         throw std::runtime_error("rank 1 has had enough");
                       communicator.barrier();
                     }),
            "rank 1 has had enough");
}

// Rank 3 fails while the others wait in groups of which it is no member, on two threads each.
TEST(ThreadCommunicator, AFailingRankEndsAllGroups) {
  std::atomic<int> ended = 0;
  const std::string error = error_of(4, [&](Communicator& world) {
    const auto main_group = world.split(world.rank() == 3 ? 1 : 0, "main");
    const auto batch_group = world.split(world.rank() == 3 ? 1 : 0, "batches");
    if (world.rank() == 3) throw std::runtime_error("rank 3 has had enough");
    if (world.rank() == 0) world.barrier();  // and comes to neither of its groups
    auto wait_in = [&](Communicator& group) {
      EXPECT_THROW(group.all_gather({}), std::runtime_error);
      ++ended;
    };
    std::thread other([&] { wait_in(*batch_group); });
    wait_in(*main_group);
    other.join();
  });
  EXPECT_EQ(error, "rank 3 has had enough");
  EXPECT_EQ(ended, 4);
}

// Rank 2 fails while rank 1 still copies what rank 0 shows: rank 0, which then takes its bytes
// away, may not leave before rank 1 has them all.
TEST(ThreadCommunicator, AFailingRankTakesNothingFromOthers) {
  constexpr std::size_t size = 128u << 20;
  std::atomic<int> begun = 0;
  std::ptrdiff_t right = 0;
  EXPECT_EQ(error_of(3,
                     [&](Communicator& world) {
                       const auto group = world.split(world.rank() == 2 ? 1 : 0, "two");
                       std::vector<std::byte> bytes(size, static_cast<std::byte>(1 - world.rank()));
                       ++begun;
                       if (world.rank() == 2) {
                         while (begun < 3) std::this_thread::yield();
                         std::this_thread::sleep_for(std::chrono::milliseconds(3));
                         throw std::runtime_error("rank 2 has had enough");
                       }
                       try {
                         group->broadcast(bytes, 0);
                         world.barrier();
                       } catch (const std::runtime_error&) {
                       }
                       if (world.rank() == 0) std::fill(bytes.begin(), bytes.end(), std::byte{7});
                       if (world.rank() == 1)
                         right = std::count(bytes.begin(), bytes.end(), std::byte{1});
                     }),
            "rank 2 has had enough");
  EXPECT_EQ(right, static_cast<std::ptrdiff_t>(size));
}

TEST(ThreadCommunicator, RanksThatDisagreeAreTold) {
  EXPECT_EQ(
      error_of(2,
               [](Communicator& world) {
                 const std::vector<std::int64_t> counts{1, 1}, wrong{1, 2};
                 std::vector<std::byte> bytes(2), room(3);
                 if (world.rank() == 0)
                   world.all_to_all(bytes, counts, room, wrong, 1);
                 else
                   world.all_to_all(bytes, counts, bytes, counts, 1);
               }),
      "rank 0: all_to_all of world (ranks 0, 1): expects 2 elements of rank 1, which sends 1");
  EXPECT_NE(error_of(3,
                     [](Communicator& world) {
                       std::vector<float> values(world.rank() == 2 ? 5 : 4);
                       world.all_reduce(values, ReduceOp::sum);
                     })
                .find("gives other counts"),
            std::string::npos);
}

TEST(ThreadCommunicator, CancelEndsAWait) {
  std::atomic<bool> all_split = false;
  const std::string error = error_of(3, [&](Communicator& world) {
    const auto group = world.split(0, "batch stream");
    if (world.rank() == 2) return;
    if (world.rank() == 1) {
      while (!all_split) std::this_thread::yield();
      group->cancel();
      return;
    }
    all_split = true;
    const std::vector<std::int64_t> counts{1, 1, 1};
    std::vector<std::byte> sent(3), received(3);
    group->all_to_all(sent, counts, received, counts, 1);
  });
  EXPECT_EQ(error, "rank 0: all_to_all of batch stream (ranks 0, 1, 2): cancelled");
}

}  // namespace
}  // namespace scone
