#include "launch/sweep/sweep_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "temporary_folder.h"

namespace scone {
namespace {

using testing::HasSubstr;

/// A point of 40 steps of 100 tokens.
SweepPoint point_of(const TemporaryFolder& folder) {
  std::ofstream(folder / "base.yaml") << R"(run: {folder: unused}
data: {train: shards/train}
model:
  main: {width: 32, layers: 2, heads: 2, context: 64}
  fgram: {layers: 0}
trainer: {steps: 40, batch_tokens: 512}
)";
  std::ofstream(folder / "s.yaml") << "run: " << folder / "base.yaml"
                                   << "\nfolder: out\n";
  SweepPoint point = expand_points(load_sweep_config(folder / "s.yaml")).at(0);
  point.figures = {.steps = 40, .tokens = 4000, .embedding_parameters = 3200, .main_flops = 100};
  return point;
}

/// What became of a run of the figures of `point`, with a step's time as its metrics have it.
PointResult trained(const SweepPoint& point, const std::string& name, std::int64_t steps,
                    double step_seconds) {
  PointResult result;
  result.point.name = name;
  result.point.figures = point.figures;
  result.status.step = steps;
  result.status.steps = point.figures.steps;
  result.tokens_per_second = steps > 0 ? 100 / step_seconds : 0;
  return result;
}

// A point that was stopped after two steps says little of the speed.
TEST(SweepPlan, PredictsFromTheLongestTrainingOfTheShape) {
  const TemporaryFolder folder;
  const SweepPoint point = point_of(folder);
  const PointResult whole = trained(point, "whole", 40, 0.5);
  const PointResult stopped = trained(point, "stopped", 2, 90);
  PointResult larger = trained(point, "larger", 80, 7);
  larger.point.figures.main_flops = 200;
  SweepResults results;
  EXPECT_FALSE(predict(point, 1, results).seconds.has_value());
  results.points = {whole, stopped, larger};
  EXPECT_DOUBLE_EQ(predict(point, 1, results).seconds.value(), 20);
  results.points = {stopped, whole, larger};
  EXPECT_DOUBLE_EQ(predict(point, 1, results).seconds.value(), 20);
}

// A training that was stopped goes on from where it is.
TEST(SweepPlan, CountsWhatIsLeft) {
  const TemporaryFolder folder;
  SweepPoint point = point_of(folder);
  point.name = "stopped";
  const SweepConfig sweep = load_sweep_config(folder / "s.yaml");
  SweepResults results;
  results.points = {trained(point, "stopped", 10, 0.5)};
  EXPECT_THAT(format_plan(sweep, {point}, results),
              HasSubstr("to train: 3K tokens, 900K FLOPs of main models, time 15.0s"));
  results.points = {trained(point, "stopped", 0, 0)};
  EXPECT_THAT(format_plan(sweep, {point}, results),
              HasSubstr("to train: 4K tokens, 1.2M FLOPs of main models, time unknown"));
}

}  // namespace
}  // namespace scone
