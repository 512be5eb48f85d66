#include "parallel/watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "group_checks.h"
#include "parallel/communicator.h"

namespace scone {
namespace {

using namespace std::chrono_literals;

/// What a watchdog says, and when it has.
struct Heard {
  std::mutex mutex;
  std::vector<std::string> messages;
  std::function<void(const std::string&)> handler() {
    return [this](const std::string& message) {
      std::lock_guard lock(mutex);
      messages.push_back(message);
    };
  }
  std::size_t count() {
    std::lock_guard lock(mutex);
    return messages.size();
  }
};

TEST(Watchdog, TellsOfAWaitForARankThatNeverComes) {
  Heard heard;
  const auto begin = std::chrono::steady_clock::now();
  run_as_threads(4, [&](Communicator& world) {
    const auto group = world.split(world.rank() % 2, "main data-parallel");
    if (world.rank() == 3) {
      // Comes at last, so that the test can end.
      while (heard.count() == 0) std::this_thread::sleep_for(5ms);
      group->barrier();
    } else if (world.rank() == 1) {
      const Watchdog watchdog(300ms, heard.handler());
      const Phase outer("step");
      const Phase inner("main model backward");
      group->barrier();
    }
  });
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 300ms);
  ASSERT_EQ(heard.count(), 1u);
  const std::string& message = heard.messages[0];
  EXPECT_EQ(message.substr(0, 20), "rank 1 has waited 0.");
  const std::string rest = message.substr(message.find(" s in "));
  EXPECT_EQ(rest,
            " s in barrier of main data-parallel (ranks 1, 3), phase \"main model backward\"; "
            "parallel.timeout is 0.3 s. A rank of that group hangs or is gone: look at its own "
            "log, or start with --hang-rank to attach a debugger");
}

TEST(Watchdog, IsQuietWhileRanksCome) {
  Heard heard;
  const Watchdog watchdog(1500ms, heard.handler());
  run_as_threads(3, [](Communicator& world) {
    const Phase phase("many short waits");
    const auto end = std::chrono::steady_clock::now() + 2s;
    std::int64_t go_on = 1;
    while (go_on != 0) {
      if (world.rank() == 1) std::this_thread::sleep_for(20ms);
      go_on = world.all_reduce_value(std::int64_t{std::chrono::steady_clock::now() < end},
                                     ReduceOp::min);
    }
  });
  std::this_thread::sleep_for(1600ms);  // nobody waits
  EXPECT_EQ(heard.count(), 0u);
}

// A device's collective, of which nobody hears when it ends.
TEST(Watchdog, AWaitThatIsOverIsNotToldOf) {
  const auto self = make_self_communicator();
  std::atomic<bool> over = true;
  const CollectiveScope scope(*self, "all_reduce", [&] { return over.load(); });
  std::atomic<bool> heard = false;
  const Watchdog watchdog(std::chrono::milliseconds(40), [&](const std::string&) { heard = true; });
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  EXPECT_FALSE(heard);
  over = false;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!heard && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(heard);
}

TEST(Watchdog, EveryCollectiveOfThreadsIsWatched) { run_as_threads(3, check_waits_are_watched); }

// The wait that lasts longest is told, of several that last too long.
TEST(Watchdog, TellsOfTheLongestWait) {
  Heard heard;
  const auto self = make_self_communicator();
  std::thread([&] {  // which takes the first slots that are free, one after the other
    const CollectiveScope first(*self, "first wait");
    std::this_thread::sleep_for(2ms);
    const CollectiveScope second(*self, "second wait");
    std::this_thread::sleep_for(50ms);
    const Watchdog watchdog(20ms, heard.handler());
    for (int i = 0; i < 1000 && heard.count() == 0; ++i) std::this_thread::sleep_for(5ms);
  })
      .join();
  ASSERT_EQ(heard.count(), 1u);
  EXPECT_NE(heard.messages[0].find(" s in first wait of world"), std::string::npos)
      << heard.messages[0];
}

TEST(Watchdog, ManyWaitsAtOnce) {
  Heard heard;
  std::atomic<bool> first_waits = false;
  run_as_threads(150, [&](Communicator& world) {
    if (world.rank() == 77) {
      const Phase phase("the first to wait");
      const Watchdog watchdog(300ms, heard.handler());
      first_waits = true;
      world.barrier();
      return;
    }
    while (world.rank() == 0 ? heard.count() == 0 : !first_waits) std::this_thread::sleep_for(5ms);
    std::this_thread::sleep_for(200ms);  // the first one is inside by now
    world.barrier();
  });
  ASSERT_EQ(heard.count(), 1u);
  EXPECT_EQ(heard.messages[0].substr(0, 18), "rank 77 has waited");
  EXPECT_NE(heard.messages[0].find("of world (ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, "
                                   "14, 15, .. of 150 ranks), phase \"the first to wait\""),
            std::string::npos)
      << heard.messages[0];
}

// A wait that has found its place behind many others, which have ended since.
TEST(Watchdog, WaitsBeyondTheFirstBlockOfSlots) {
  const auto self = make_self_communicator();
  std::vector<std::unique_ptr<CollectiveScope>> ended;
  for (int i = 0; i < 200; ++i)
    ended.push_back(std::make_unique<CollectiveScope>(*self, "a wait that ends"));
  const CollectiveScope last(*self, "the last wait");
  ended.clear();
  Heard heard;
  const Watchdog watchdog(30ms, heard.handler());
  for (int i = 0; i < 1000 && heard.count() == 0; ++i) std::this_thread::sleep_for(5ms);
  ASSERT_EQ(heard.count(), 1u);
  EXPECT_NE(heard.messages[0].find("in the last wait of world"), std::string::npos)
      << heard.messages[0];
}

TEST(Watchdog, OneAtATimeAndSlotsAreGivenBack) {
  const auto self = make_self_communicator();
  Heard heard;
  {
    const Watchdog first(1h, heard.handler());
    EXPECT_THROW(Watchdog(1h, heard.handler()), std::logic_error);
  }
  { const CollectiveScope scope(*self, "a wait that ends"); }
  const Watchdog second(30ms, heard.handler());
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(heard.count(), 0u);
  const CollectiveScope outer(*self, "outer wait");
  { const CollectiveScope inner(*self, "inner wait"); }
  while (heard.count() == 0) std::this_thread::sleep_for(5ms);
  EXPECT_NE(heard.messages[0].find("in outer wait of world (rank 0 alone); parallel"),
            std::string::npos)
      << heard.messages[0];
}

}  // namespace
}  // namespace scone
