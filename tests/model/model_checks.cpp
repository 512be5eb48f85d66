#include "model_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "op_cases.h"
#include "worst_error.h"

namespace scone {
namespace {

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

/// Losses a position of steps on one batch.
std::vector<double> train(const ModelCase& model_case, Backend& backend, DType dtype, int steps) {
  const reference::Batch batch = random_batch(model_case.config, 3);
  SconeModel model(model_case.config, batch, 4, backend, dtype);
  struct State {
    ParameterSet& parameters;
    Tensor m, v;
  };
  std::vector<State> states;
  for (ParameterSet* set : {&model.main_parameters, &model.fgram_parameters}) {
    const auto make = [&] {
      return Tensor::zeros({set->elements()}, DType::fp32, backend.device());
    };
    states.push_back({*set, make(), make()});
  }
  const auto positions = static_cast<float>(batch.tokens.size());
  std::vector<double> losses;
  for (int step = 1; step <= steps; ++step) {
    losses.push_back(model.forward_backward(batch, 1 / positions) / positions);
    for (const State& state : states) {
      const ParameterSet& set = state.parameters;
      const AdamwRange all{0, 0, set.elements(), true};
      backend.adamw({set.flat_values(), set.flat_gradients(), state.m, state.v, set.flat_working()},
                    std::span(&all, 1), {.lr = 0.005F, .weight_decay = 0.1F, .step = step});
    }
  }
  return losses;
}

}  // namespace

void check_model(const ModelCase& model_case, Backend& backend, DType dtype) {
  const Outcome expected = run_model(model_case, cpu_backend(), DType::fp32);
  const Outcome found = run_model(model_case, backend, dtype);
  // bf16: weights and activations have 8 bits; the layers' errors add up like a random walk's.
  const double loss_allowed = dtype == DType::bf16 ? 0x1p-7 : 2e-6;
  const double gradient_allowed = dtype == DType::bf16 ? 0x1p-4 : 1e-5;
  double worst_loss = std::abs(found.loss / expected.loss - 1), worst = 0;
  worst_loss = worse(worst_loss, std::abs(found.forward_loss / expected.forward_loss - 1));
  EXPECT_LT(relative(found.losses, expected.losses), 4 * loss_allowed);
  for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
    const double error = relative(found.gradients[i], expected.gradients[i]);
    EXPECT_LT(error, gradient_allowed) << "gradient " << i;
    worst = worse(worst, error);
  }
  EXPECT_LT(worst_loss, loss_allowed);
  std::printf("%s %s: loss %.1e of %.1e, gradients %.1e of %.1e\n", model_case.name.c_str(),
              name_of(dtype), worst_loss, loss_allowed, worst, gradient_allowed);
}

void check_model_repeats(const ModelCase& model_case, Backend& backend, DType dtype) {
  const Outcome first = run_model(model_case, backend, dtype);
  const Outcome second = run_model(model_case, backend, dtype);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(first.losses, second.losses);
  EXPECT_EQ(first.gradients, second.gradients);
}

void check_model_steps(const ModelCase& model_case, Backend& backend, DType dtype, int steps) {
  const std::vector<double> expected = train(model_case, cpu_backend(), DType::fp32, steps);
  const std::vector<double> found = train(model_case, backend, dtype, steps);
  const double allowed = dtype == DType::bf16 ? 0x1p-4 : 1e-4;  // of the first loss
  double worst = 0;
  for (std::size_t step = 0; step < expected.size(); ++step) {
    const double error = std::abs(found[step] - expected[step]) / expected[0];
    worst = worse(worst, error);
  }
  EXPECT_LT(worst, allowed);
  EXPECT_LT(found.back(), (steps < 50 ? 0.95 : 0.5) * found.front());
  std::printf("%s %s: loss from %.3f to %.3f (processor %.3f), largest difference %.1e of %.1e\n",
              model_case.name.c_str(), name_of(dtype), found.front(), found.back(), expected.back(),
              worst, allowed);
}

}  // namespace scone
