#include "parallel/communicator.h"

#include <gtest/gtest.h>

#include "collective_checks.h"

namespace scone {
namespace {

TEST(SelfCommunicator, CollectivesAndExchange) {
  const auto self = make_self_communicator();
  check_collectives(*self);
  check_fgram_exchange(*self);
}

TEST(ThreadCommunicator, CollectivesAndExchange) {
  for (const int ranks : {1, 2, 3, 5, 8}) {
    run_as_threads(ranks, [](Communicator& communicator) {
      check_collectives(communicator);
      check_fgram_exchange(communicator);
    });
  }
}

TEST(ThreadCommunicator, AFailingRankEndsTheOthers) {
  try {
    run_as_threads(3, [](Communicator& communicator) {
      if (communicator.rank() == 1) throw std::runtime_error("rank 1 has had enough");
      communicator.barrier();
    });
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "rank 1 has had enough");
  }
}

}  // namespace
}  // namespace scone
