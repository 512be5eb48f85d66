#include "layout_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "model/ops/ops.h"
#include "tiny_data.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

constexpr double tolerance = 1e-5;

/// Largest difference of two parameter sets' tensors, each relative to the tensor's largest entry.
double largest_difference(const ParameterSet& a, const ParameterSet& b,
                          const Tensor& (ParameterSet::*tensor)(std::size_t) const) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto of_a = (a.*tensor)(i).span<float>();
    const auto of_b = (b.*tensor)(i).span<float>();
    double scale = 1e-12, difference = 0;
    for (std::size_t k = 0; k < of_a.size(); ++k) {
      scale = std::max(scale, static_cast<double>(std::abs(of_b[k])));
      difference = std::max(difference, static_cast<double>(std::abs(of_a[k] - of_b[k])));
    }
    // A key bias has no gradient but rounding: below this nothing can be told.
    if (scale > 1e-7) largest = std::max(largest, difference / scale);
  }
  return largest;
}

}  // namespace

void check_against_one_rank(Communicator& world, std::int64_t fgram_layers) {
  const TinyData data;
  const RunConfig config = data.run("run", fgram_layers);
  const auto self = make_self_communicator();
  Trainer alone(config, cpu_backend(), *self);
  Trainer together(config, cpu_backend(), world);
  double loss_error = 0, norm_error = 0, gradient_error = 0;
  for (int step = 0; step < 4; ++step) {
    const StepMetrics expected = alone.train_step();
    const StepMetrics found = together.train_step();
    loss_error = std::max(loss_error, std::abs(found.loss / expected.loss - 1));
    norm_error = std::max(norm_error, std::abs(found.grad_norm / expected.grad_norm - 1));
    EXPECT_EQ(found.fgram_nodes_per_token, expected.fgram_nodes_per_token);
    if (step > 0) continue;  // later gradients are of parameters that differ by rounding
    gradient_error = largest_difference(together.main_parameters(), alone.main_parameters(),
                                        &ParameterSet::gradient);
    if (fgram_layers > 0)
      gradient_error = std::max(
          gradient_error, largest_difference(together.fgram_parameters(), alone.fgram_parameters(),
                                             &ParameterSet::gradient));
  }
  const double evaluation_error =
      std::abs(together.evaluate_validation().loss / alone.evaluate_validation().loss - 1);
  if (world.rank() == 0)
    std::printf(
        "%d ranks, %d f-gram layers: relative error of losses %.1e, gradient norms %.1e, gradients "
        "%.1e, validation loss %.1e\n",
        world.size(), static_cast<int>(fgram_layers), loss_error, norm_error, gradient_error,
        evaluation_error);
  EXPECT_LT(loss_error, tolerance);
  EXPECT_LT(norm_error, tolerance);
  EXPECT_LT(gradient_error, tolerance);
  EXPECT_LT(evaluation_error, tolerance);
}

}  // namespace scone
