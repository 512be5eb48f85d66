// The processor's backend: its bf16 against its fp32 on whole models, and its instruction set.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "model_checks.h"

namespace scone {
namespace {

class Bf16ModelTest : public ::testing::TestWithParam<ModelCase> {};

TEST_P(Bf16ModelTest, LossAndGradientsAgreeWithFp32) {
  check_model(GetParam(), cpu_backend(), DType::bf16);
}

TEST_P(Bf16ModelTest, RepeatsBitByBit) {
  check_model_repeats(GetParam(), cpu_backend(), DType::bf16);
}

TEST_P(Bf16ModelTest, StepsFollowFp32) {
  check_model_steps(GetParam(), cpu_backend(), DType::bf16, 50);
}

INSTANTIATE_TEST_SUITE_P(Models, Bf16ModelTest, ::testing::ValuesIn(model_cases()),
                         [](const auto& instance) { return instance.param.name; });

// All tests of the model run once for each set that SCONE_MAX_ISA names, see CMakeLists.txt.
TEST(InstructionSet, IsAtMostTheOneAskedFor) {
  const std::string order[] = {"sse4", "avx2", "avx512", "avx512_bf16"};
  const std::string used = cpu_instruction_set();
  std::printf("instruction set: %s\n", used.c_str());
  const char* asked = std::getenv("SCONE_MAX_ISA");
  if (asked == nullptr) return;
  const auto place = [&](const std::string& name) {
    return std::find(std::begin(order), std::end(order), name) - std::begin(order);
  };
  ASSERT_LT(place(used), 4);
  EXPECT_LE(place(used), place(asked));
}

}  // namespace
}  // namespace scone
