// The CUDA backend through the operation registry, and whole models on it against the processor's.

#include <gtest/gtest.h>

#include <tuple>

#include "cuda_test.h"
#include "model_checks.h"
#include "op_checks.h"

namespace scone {
namespace {

constexpr DType kTypes[] = {DType::fp32, DType::bf16};

class CudaOpTest : public ::testing::TestWithParam<std::tuple<OpCase, DType>> {};

TEST_P(CudaOpTest, AgreesWithTheDoubleReferenceAndItsDifferences) {
  check_op(std::get<0>(GetParam()), test_cuda_backend(), std::get<1>(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Registry, CudaOpTest,
                         ::testing::Combine(::testing::ValuesIn(op_cases()),
                                            ::testing::ValuesIn(kTypes)),
                         [](const auto& instance) {
                           return std::get<0>(instance.param).name + "_" +
                                  name_of(std::get<1>(instance.param));
                         });

TEST(CudaBackend, AdamwFollowsItsFormula) {
  for (const DType dtype : kTypes) check_adamw(test_cuda_backend(), dtype);
}

TEST(CudaBackend, AdamwRoundsAtRandomByPhilox) { check_stochastic_rounding(test_cuda_backend()); }

TEST(CudaBackend, NormAndSum) { check_reductions(test_cuda_backend()); }

TEST(CudaBackend, UploadDownloadCopyZero) {
  for (const DType dtype : kTypes) check_moves(test_cuda_backend(), dtype);
}

#ifdef SCONE_CUDA_ON_HOST
constexpr int kSteps = 5;  // kernels run thread by thread there
#else
constexpr int kSteps = 50;
#endif

class CudaModelTest : public ::testing::TestWithParam<std::tuple<ModelCase, DType>> {};

TEST_P(CudaModelTest, LossAndGradientsAgreeWithTheProcessor) {
  check_model(std::get<0>(GetParam()), test_cuda_backend(), std::get<1>(GetParam()));
}

TEST_P(CudaModelTest, RepeatsBitByBit) {
  check_model_repeats(std::get<0>(GetParam()), test_cuda_backend(), std::get<1>(GetParam()));
}

TEST_P(CudaModelTest, StepsFollowTheProcessors) {
  check_model_steps(std::get<0>(GetParam()), test_cuda_backend(), std::get<1>(GetParam()), kSteps);
}

INSTANTIATE_TEST_SUITE_P(Models, CudaModelTest,
                         ::testing::Combine(::testing::ValuesIn(model_cases()),
                                            ::testing::ValuesIn(kTypes)),
                         [](const auto& instance) {
                           return std::get<0>(instance.param).name + "_" +
                                  name_of(std::get<1>(instance.param));
                         });

}  // namespace
}  // namespace scone
