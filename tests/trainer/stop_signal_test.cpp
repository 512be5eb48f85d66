#include "trainer/stop_signal.h"

#include <gtest/gtest.h>
#include <omp.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>
#include <vector>

#include "model/ops/ops.h"

namespace scone {
namespace {

void send_to_process(int signal) { ASSERT_EQ(kill(getpid(), signal), 0); }

/// Whether the flag is set within ten seconds.
bool arrives(const StopSignal& stop) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (stop.received() == 0 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return stop.received() != 0;
}

bool is_blocked(int signal) {
  sigset_t set;
  pthread_sigmask(SIG_BLOCK, nullptr, &set);
  return sigismember(&set, signal) == 1;
}

TEST(StopSignal, SetsTheFlagAndTheSecondEndsTheProcess) {
  std::signal(SIGINT, SIG_DFL);
  for (const int signal : {SIGTERM, SIGUSR1, SIGINT}) {
    const StopSignal stop;
    EXPECT_EQ(stop.received(), 0);
    send_to_process(signal);
    ASSERT_TRUE(arrives(stop));
    EXPECT_EQ(stop.received(), signal);
  }
  const auto twice = [] {
    const StopSignal stop;
    send_to_process(SIGUSR1);
    if (!arrives(stop)) return;
    std::this_thread::sleep_for(StopSignal::one_stop);
    send_to_process(SIGTERM);
    std::this_thread::sleep_for(std::chrono::seconds(10));
  };
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(twice(), testing::KilledBySignal(SIGTERM), "");
}

// A shell's background job ignores ctrl-C, which is for the foreground.
TEST(StopSignal, LeavesAnIgnoredInterruptIgnored) {
  std::signal(SIGINT, SIG_IGN);
  {
    const StopSignal stop;
    send_to_process(SIGINT);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(stop.received(), 0);
  }
  EXPECT_EQ(std::signal(SIGINT, SIG_DFL), SIG_IGN);
}

TEST(StopSignal, OfSeveralWithinAMomentIsOneStop) {
  const auto storm = [] {
    const StopSignal stop;
    for (int i = 0; i < 20; ++i) {
      send_to_process(i % 2 == 0 ? SIGTERM : SIGUSR1);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    const int first = stop.received();
    send_to_process(SIGUSR1);
    // What came meanwhile does not wait for the end of the two seconds either.
    std::this_thread::sleep_for(StopSignal::one_stop);
    std::_Exit(first == SIGTERM && stop.received() == SIGTERM ? 3 : 4);
  };
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(storm(), testing::ExitedWithCode(3), "");
}

// A run that has saved is still to report it and to leave MPI.
TEST(StopSignal, IsOneStopAfterTheDestructionToo) {
  const auto ends = [](bool late) {
    {
      const StopSignal stop;
      send_to_process(SIGTERM);
      if (!arrives(stop)) std::_Exit(4);
    }
    if (late) std::this_thread::sleep_for(StopSignal::one_stop);
    send_to_process(SIGUSR1);
    std::_Exit(3);
  };
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(ends(false), testing::ExitedWithCode(3), "");
  EXPECT_EXIT(ends(true), testing::KilledBySignal(SIGUSR1), "");
}

TEST(StopSignal, IsTakenByNoThreadThatComputes) {
  // On a thread whose team OpenMP starts then, not one that an earlier test left.
  std::thread([] {
    {
      const StopSignal stop;
      std::atomic<int> open = 0;
#pragma omp parallel num_threads(3)
      open += is_blocked(SIGTERM) && is_blocked(SIGUSR1) ? 0 : 1;
      EXPECT_EQ(open, 0);
    }
    EXPECT_FALSE(is_blocked(SIGTERM) || is_blocked(SIGUSR1));
  }).join();
}

TEST(StopSignal, InAProductLeavesItsNumbersAndTheHeapAsTheyAre) {
  omp_set_num_threads(1);  // the products whose kernels move the stack pointer
  constexpr std::int64_t kRows = 1024, kIn = 512, kOut = 2048;
  const Tensor d_y = Tensor::zeros({kRows, kOut}), weight = Tensor::zeros({kOut, kIn}),
               d_x = Tensor::zeros({kRows, kIn});
  float next = 0;
  for (const Tensor& tensor : {d_y, weight})
    for (float& value : tensor.span<float>()) value = (next = next > 6 ? -5 : next + 0.75F);
  const auto product = [&] { cpu_backend().linear_backward_input(d_y, weight, d_x, false, kRows); };
  const auto start = std::chrono::steady_clock::now();
  product();
  const auto time = std::chrono::steady_clock::now() - start;
  const auto values = d_x.span<float>();
  const std::vector<float> expected(values.begin(), values.end());
  for (int round = 0; round < 40; ++round) {
    const StopSignal stop;
    std::thread sender([&] {
      std::this_thread::sleep_for(time * (round % 8) / 8);
      send_to_process(SIGUSR1);
    });
    while (stop.received() == 0) product();
    sender.join();
    EXPECT_TRUE(std::ranges::equal(values, expected)) << "round " << round;
  }
}

}  // namespace
}  // namespace scone
