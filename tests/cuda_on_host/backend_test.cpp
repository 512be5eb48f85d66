// The CUDA backend through the operation registry, and whole models on it against the processor's.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <tuple>

#include "../model/model_fixture.h"
#include "../model/op_checks.h"
#include "cuda_test.h"

namespace scone {
namespace {

constexpr DType kTypes[] = {DType::fp32, DType::bf16};

class CudaOpTest : public ::testing::TestWithParam<std::tuple<OpCase, DType>> {};

TEST_P(CudaOpTest, AgreesWithTheDoubleReferenceAndItsDifferences) {
  SKIP_WITHOUT_CUDA();
  check_op(std::get<0>(GetParam()), cuda_backend(), std::get<1>(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Registry, CudaOpTest,
                         ::testing::Combine(::testing::ValuesIn(op_cases()),
                                            ::testing::ValuesIn(kTypes)),
                         [](const auto& instance) {
                           return std::get<0>(instance.param).name + "_" +
                                  name_of(std::get<1>(instance.param));
                         });

TEST(CudaBackend, AdamwFollowsItsFormula) {
  SKIP_WITHOUT_CUDA();
  for (const DType dtype : kTypes) check_adamw(cuda_backend(), dtype);
}

TEST(CudaBackend, NormAndSum) {
  SKIP_WITHOUT_CUDA();
  check_reductions(cuda_backend());
}

TEST(CudaBackend, UploadDownloadCopyZero) {
  SKIP_WITHOUT_CUDA();
  for (const DType dtype : kTypes) check_moves(cuda_backend(), dtype);
}

/// Loss, losses and gradients of a model on a batch.
struct Outcome {
  double loss = 0, forward_loss = 0;
  std::vector<float> losses;
  std::vector<std::vector<float>> gradients;  // main, f-gram, rows
};

Outcome run_model(const ModelCase& model_case, Backend& backend, DType dtype) {
  const reference::Batch batch = random_batch(model_case.config, 3);
  SconeModel model(model_case.config, batch, 4, backend, dtype);
  Outcome outcome;
  outcome.losses.resize(batch.tokens.size());
  outcome.forward_loss = model.forward(batch, outcome.losses);
  outcome.loss = model.forward_backward(batch, 0.5F);
  for (const Tensor& gradients : {model.main_parameters.flat_gradients(),
                                  model.fgram_parameters.flat_gradients(), model.row_gradients}) {
    outcome.gradients.push_back(values_of(backend, gradients));
  }
  return outcome;
}

/// |found - expected| / |expected|, in the Euclidean norm.
double relative(const std::vector<float>& found, const std::vector<float>& expected) {
  double difference = 0, whole = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double{found[i]} - expected[i], 2);
    whole += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(difference / whole);
}

class CudaModelTest : public ::testing::TestWithParam<std::tuple<ModelCase, DType>> {};

TEST_P(CudaModelTest, LossAndGradientsAgreeWithTheProcessor) {
  SKIP_WITHOUT_CUDA();
  const auto& [model_case, dtype] = GetParam();
  const Outcome expected = run_model(model_case, cpu_backend(), DType::fp32);
  const Outcome found = run_model(model_case, cuda_backend(), dtype);
  // bf16: weights and activations have 8 bits; the layers' errors add up like a random walk's.
  const double loss_allowed = dtype == DType::bf16 ? 0x1p-7 : 2e-6;
  const double gradient_allowed = dtype == DType::bf16 ? 0x1p-4 : 1e-5;
  double worst_loss = std::abs(found.loss / expected.loss - 1), worst = 0;
  worst_loss = std::max(worst_loss, std::abs(found.forward_loss / expected.forward_loss - 1));
  EXPECT_LT(relative(found.losses, expected.losses), 4 * loss_allowed);
  for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
    const double error = relative(found.gradients[i], expected.gradients[i]);
    EXPECT_LT(error, gradient_allowed) << "gradient " << i;
    worst = std::max(worst, error);
  }
  EXPECT_LT(worst_loss, loss_allowed);
  std::printf("%s %s: loss %.1e of %.1e, gradients %.1e of %.1e\n", model_case.name.c_str(),
              name_of(dtype), worst_loss, loss_allowed, worst, gradient_allowed);
}

TEST_P(CudaModelTest, RepeatsBitByBit) {
  SKIP_WITHOUT_CUDA();
  const auto& [model_case, dtype] = GetParam();
  const Outcome first = run_model(model_case, cuda_backend(), dtype);
  const Outcome second = run_model(model_case, cuda_backend(), dtype);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.losses, second.losses);
  EXPECT_EQ(first.gradients, second.gradients);
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
