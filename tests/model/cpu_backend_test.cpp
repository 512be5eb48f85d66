// The processor's backend: its bf16 against its fp32 on whole models, and its instruction set.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "model/parameter.h"
#include "model_checks.h"
#include "op_cases.h"
#include "worst_error.h"

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

/// Largest difference over the largest value.
double difference(const std::vector<float>& found, const std::vector<float>& expected) {
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(double{found[i]} - expected[i]);
    worst = worse(worst, error);
    largest = std::max(largest, std::abs(double{expected[i]}));
  }
  return worst / largest;
}

/// Over several tiles of keys and panels of a head's columns, with documents apart, and of an odd
/// number of keys and columns.
/// Attention of NaN alone, which leaves it in memory that later calls use again.
void leave_nan_behind(Backend& backend, const CausalShape& shape, DType dtype) {
  const std::int64_t rows = shape.sequences * shape.length, width = shape.heads * shape.head_width;
  const std::vector<float> nan(static_cast<std::size_t>(rows * 3 * width), std::nanf(""));
  const Tensor qkv = Tensor::zeros({rows, 3 * width}, dtype),
               out = Tensor::zeros({rows, width}, dtype),
               log_sums = Tensor::zeros({rows, shape.heads});
  backend.upload(nan, qkv);
  const Tensor start = integers(backend, std::vector<std::int32_t>(static_cast<std::size_t>(rows)));
  backend.causal_attention(shape, qkv, start, out, log_sums);
  const Tensor d_qkv = Tensor::zeros({rows, 3 * width}, dtype);
  backend.causal_attention_backward(shape, qkv, start, out, log_sums, out, d_qkv);
}

TEST(Bf16Attention, AgreesWithFp32OnTheSameNumbers) {
  Backend& backend = cpu_backend();
  for (const CausalShape shape : {CausalShape{2, 1100, 2, 80}, CausalShape{1, 600, 3, 64},
                                  CausalShape{2, 595, 2, 7}, CausalShape{1, 33, 2, 16}}) {
    const std::int64_t rows = shape.sequences * shape.length,
                       width = shape.heads * shape.head_width;
    std::vector<std::int32_t> starts;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t place = i % shape.length;
      starts.push_back(place < 530 ? 0 : place < 590 ? 530 : place < 1090 ? 590 : 1090);
    }
    const Tensor start = integers(backend, starts);
    struct Run {
      std::vector<float> out, log_sums, d_qkv;
    };
    const auto run = [&](DType dtype) {
      const auto normal = [&](std::int64_t columns, std::uint64_t seed) {
        std::vector<float> values(static_cast<std::size_t>(rows * columns));
        counter_normal(seed, "attention", 0, values);
        const Tensor rounded = Tensor::zeros({rows, columns}, DType::bf16);
        backend.upload(values, rounded);
        const Tensor tensor = Tensor::zeros({rows, columns}, dtype);
        backend.copy(rounded, tensor);
        return tensor;
      };
      const Tensor qkv = normal(3 * width, 1), d_out = normal(width, 2);
      const Tensor out = Tensor::zeros({rows, width}, dtype),
                   d_qkv = Tensor::zeros({rows, 3 * width}, dtype),
                   log_sums = Tensor::zeros({rows, shape.heads});
      CausalShape longer = shape;
      longer.length += 64;
      leave_nan_behind(backend, longer, dtype);
      backend.causal_attention(shape, qkv, start, out, log_sums);
      backend.causal_attention_backward(shape, qkv, start, out, log_sums, d_out, d_qkv);
      return Run{values_of(backend, out), values_of(backend, log_sums), values_of(backend, d_qkv)};
    };
    const Run expected = run(DType::fp32), found = run(DType::bf16);
    const double of_out = difference(found.out, expected.out);
    const double of_log_sums = difference(found.log_sums, expected.log_sums);
    const double of_gradients = difference(found.d_qkv, expected.d_qkv);
    std::printf("length %lld: out %.1e, log sums %.1e, gradients %.1e\n",
                static_cast<long long>(shape.length), of_out, of_log_sums, of_gradients);
    EXPECT_LT(of_out, 0x1p-7);
    EXPECT_LT(of_log_sums, 1e-5);  // summed before weights are rounded
    EXPECT_LT(of_gradients, 0x1p-6);
  }
}

/// The best set that this processor has.
std::string best_instruction_set() {
#ifdef __aarch64__
  return "neon";
#else
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? "avx512_bf16" : "avx512";
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "avx2" : "sse4";
#endif
}

// All tests of the model run once for each set that SCONE_MAX_ISA names, see CMakeLists.txt.
TEST(InstructionSet, IsTheBestOfTheProcessorThatIsAllowed) {
  const std::vector<std::string> order = {"neon", "sse4", "avx2", "avx512", "avx512_bf16"};
  const auto place = [&](const std::string& name) {
    return std::find(order.begin(), order.end(), name) - order.begin();
  };
  std::string expected = best_instruction_set();
  const char* asked = std::getenv("SCONE_MAX_ISA");
  if (asked != nullptr && place(asked) < place(expected)) expected = asked;
  EXPECT_EQ(cpu_instruction_set(), expected);
}

}  // namespace
}  // namespace scone
