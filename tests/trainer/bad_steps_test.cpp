#include "trainer/bad_steps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace scone {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// A loss that wavers around 3, and a norm around 1.
double wavering(int step) { return 3 + 0.1 * ((step * 7) % 5 - 2); }

TEST(BadSteps, OnlyWhatIsNotFiniteIsBadWithoutSigma) {
  BadSteps steps(0, 4);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(steps.judge(wavering(i), 1), "");
  EXPECT_EQ(steps.judge(1000, 1000), "");
  EXPECT_THAT(steps.judge(std::nan(""), 1), ::testing::HasSubstr("not both finite"));
  EXPECT_THAT(steps.judge(1, infinity), ::testing::HasSubstr("not both finite"));
  EXPECT_EQ(steps.in_a_row(), 2);
  EXPECT_EQ(steps.judge(1, 1), "");
  EXPECT_EQ(steps.in_a_row(), 0);
}

TEST(BadSteps, OutliersAreBadOnceTheWindowIsFull) {
  BadSteps steps(4, 5);
  EXPECT_EQ(steps.judge(1000, 1), "");  // nothing to compare with
  for (int i = 0; i < 5; ++i) EXPECT_EQ(steps.judge(wavering(i), 1 + 0.1 * (i % 3)), "");
  EXPECT_THAT(steps.judge(5, 1), ::testing::HasSubstr("standard deviations"));
  EXPECT_THAT(steps.judge(3, 2), ::testing::HasSubstr("bad_step_sigma 4"));
  EXPECT_EQ(steps.in_a_row(), 2);  // and neither has joined the window
  EXPECT_EQ(steps.judge(3.1, 1), "");
  EXPECT_EQ(steps.judge(0.5, 0.1), "");  // far below is no reason to skip
}

TEST(BadSteps, TheStateContinuesExactly) {
  BadSteps whole(3, 6), first(3, 6), second(3, 6);
  for (int i = 0; i < 9; ++i) {
    whole.judge(wavering(i) / 3, wavering(i * i));
    first.judge(wavering(i) / 3, wavering(i * i));
  }
  whole.judge(infinity, 1);
  first.judge(infinity, 1);
  second.restore(nlohmann::json::parse(first.state().dump()));
  EXPECT_EQ(second.state(), whole.state());
  for (int i = 9; i < 40; ++i) {
    const double loss = i % 6 == 0 ? 1.4 : wavering(i) / 3;
    EXPECT_EQ(second.judge(loss, wavering(i)), whole.judge(loss, wavering(i))) << i;
  }
}

}  // namespace
}  // namespace scone
