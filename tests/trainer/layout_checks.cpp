#include "layout_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "model/ops/ops.h"
#include "trainer/trainer.h"
#include "worst_error.h"

namespace scone {
namespace {

constexpr double tolerance = 1e-5;

double relative(double found, double expected) { return std::abs(found / expected - 1); }

double largest_difference(const Tensor& found, const Tensor& expected) {
  const auto a = found.span<float>(), b = expected.span<float>();
  if (a.size() != b.size()) return INFINITY;
  double scale = 0, difference = 0;
  for (std::size_t k = 0; k < a.size(); ++k) {
    scale = std::max(scale, static_cast<double>(std::abs(b[k])));
    difference = worse(difference, static_cast<double>(std::abs(a[k] - b[k])));
  }
  // A key bias has no gradient but rounding: below this nothing can be told.
  return scale > 1e-7 || std::isinf(difference) ? difference / scale : 0;
}

/// Expects equal bits of a tensor on all ranks of a group.
void expect_same_bits(Communicator& group, const Tensor& tensor, const std::string& what) {
  const auto bytes = std::as_bytes(tensor.span<float>());
  const auto all = group.all_gather(bytes);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), all[rank].begin(), all[rank].end()))
        << what << " differs between ranks of " << group.name();
}

void expect_replicas_equal(const ParameterSet& parameters, const ProcessGrid& grid,
                           bool gradients) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& tensor = gradients ? parameters.gradient(i) : parameters.value(i);
    const std::string what = parameters.spec(i).name + (gradients ? "'s gradient" : "'s value");
    expect_same_bits(grid.data(), tensor, what);
    if (parameters.spec(i).replicated()) expect_same_bits(grid.tensor(), tensor, what);
  }
}

void append_global(const ParameterSet& parameters, const ProcessGrid& grid, bool gradients,
                   std::vector<Tensor>& tensors) {
  for (std::size_t i = 0; i < parameters.size(); ++i)
    tensors.push_back(gather_shards(parameters.spec(i),
                                    gradients ? parameters.gradient(i) : parameters.value(i),
                                    grid.tensor()));
}

}  // namespace

Trajectory run_trajectory(Communicator& world, const RunConfig& config, int steps) {
  Trainer trainer(config, cpu_backend(), world);
  Trajectory trajectory;
  const bool has_fgrams = config.model.fgram.layers > 0;
  const auto visit = [&](bool gradients, std::vector<Tensor>& tensors) {
    expect_replicas_equal(trainer.main_parameters(), trainer.grids().main, gradients);
    append_global(trainer.main_parameters(), trainer.grids().main, gradients, tensors);
    if (!has_fgrams) return;
    expect_replicas_equal(trainer.fgram_parameters(), trainer.grids().fgram, gradients);
    append_global(trainer.fgram_parameters(), trainer.grids().fgram, gradients, tensors);
  };
  for (int step = 0; step < steps; ++step) {
    const StepMetrics metrics = trainer.train_step();
    trajectory.losses.push_back(metrics.loss);
    trajectory.gradient_norms.push_back(metrics.grad_norm);
    trajectory.nodes_per_token.push_back(metrics.fgram_nodes_per_token);
    if (step > 0) continue;
    trainer.main_optimizer().gather_gradients();
    if (has_fgrams) trainer.fgram_optimizer().gather_gradients();
    visit(true, trajectory.gradients);
  }
  visit(false, trajectory.parameters);
  for (const ParameterSet* set : {&trainer.main_parameters(), &trainer.fgram_parameters()})
    for (std::size_t i = 0; i < set->size(); ++i) trajectory.names.push_back(set->spec(i).name);
  trajectory.validation_loss = trainer.evaluate_validation().loss;
  return trajectory;
}

RunConfig on_one_rank(RunConfig config) {
  config.parallel = {};
  config.parallel.overlap = false;
  config.compute.recompute = Recompute::none;
  config.trainer.microbatch_tokens = config.trainer.batch_tokens;
  config.model.fgram_chunk_nodes = 1 << 14;
  config.model.fgram_recompute = FgramRecompute::none;
  config.fgrams.share = true;
  return config;
}

double Deviation::largest() const {
  return worse(worse(worse(loss, gradient_norm), worse(gradient, parameter)), validation_loss);
}

Deviation compare(const Trajectory& found, const Trajectory& expected) {
  Deviation deviation;
  EXPECT_EQ(found.names, expected.names);
  for (std::size_t step = 0; step < expected.losses.size(); ++step) {
    deviation.loss = worse(deviation.loss, relative(found.losses[step], expected.losses[step]));
    deviation.gradient_norm =
        worse(deviation.gradient_norm,
              relative(found.gradient_norms[step], expected.gradient_norms[step]));
  }
  for (std::size_t i = 0; i < expected.names.size(); ++i) {
    const double of_gradient = largest_difference(found.gradients[i], expected.gradients[i]);
    const double of_value = largest_difference(found.parameters[i], expected.parameters[i]);
    EXPECT_LT(of_gradient, tolerance) << "gradient of " << expected.names[i];
    EXPECT_LT(of_value, tolerance) << expected.names[i];
    deviation.gradient = worse(deviation.gradient, of_gradient);
    deviation.parameter = worse(deviation.parameter, of_value);
  }
  deviation.validation_loss = relative(found.validation_loss, expected.validation_loss);
  return deviation;
}

void check_trajectory(Communicator& world, const RunConfig& config, const Trajectory& expected,
                      const std::string& what) {
  const Trajectory found = run_trajectory(world, config, static_cast<int>(expected.losses.size()));
  if (world.rank() != 0) return;
  if (config.fgrams.share) {  // distinct nodes, so exact on any grid
    EXPECT_EQ(found.nodes_per_token, expected.nodes_per_token);
  }
  const Deviation deviation = compare(found, expected);
  std::printf(
      "%s: loss %.1e, gradient norm %.1e, gradients %.1e, parameters %.1e, validation loss %.1e\n",
      what.c_str(), deviation.loss, deviation.gradient_norm, deviation.gradient,
      deviation.parameter, deviation.validation_loss);
  EXPECT_LT(deviation.largest(), tolerance) << what;
}

}  // namespace scone
