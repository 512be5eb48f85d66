#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/sweep/sweep_config.h"
#include "launch/sweep/sweep_points.h"
#include "launch/sweep/sweep_results.h"

namespace scone {

/// What a run will take, as far as it can be told.
struct Prediction {
  std::optional<double> seconds;  // of the training
  // Of each rank: parameters, gradients, moments, and activations, without f-gram rows.
  std::int64_t least_bytes = 0;
};

/// earlier: what the sweep's folder holds, of this sweep's points and of others; the speed is that
/// of the point of the same models and f-grams that has been trained for the most steps.
Prediction predict(const SweepPoint& point, int ranks, const SweepResults& earlier);

/// The plan: a row a point, with tokens, parameters, FLOPs and predictions, and what is done of it.
std::string format_plan(const SweepConfig& sweep, const std::vector<SweepPoint>& points,
                        const SweepResults& earlier);

}  // namespace scone
