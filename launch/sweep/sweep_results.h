#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/sweep/sweep_folder.h"
#include "launch/sweep/sweep_status.h"

namespace scone {

/// What became of a point.
struct PointResult {
  RecordedPoint point;
  PointStatus status;
  std::optional<double> loss, perplexity, bits_per_byte;  // of the evaluation; none: not yet
  std::optional<double> baked_loss, baked_perplexity;
  std::optional<double> table_bytes;  // of the bundle's f-gram table and its index
  double training_flops = 0;          // of both models, forward and backward, of the steps so far
  double nodes_per_token = 0;         // computed by the f-gram model, mean over the steps
  double training_seconds = 0;
  double tokens_per_second = 0;  // of the median step
  /// (tokens, loss), thinned.
  std::vector<std::pair<double, double>> training_curve, validation_curve;

  bool finished() const { return loss.has_value(); }
  /// Training FLOPs of both models by those of the main model alone.
  double training_flops_ratio() const;
  const std::string* label(const std::string& axis) const;  // null: it has none on this axis
};

/// Points that differ in their seed alone.
struct SettingResult {
  std::vector<const PointResult*> runs;  // at least one, the finished ones first
  struct Spread {
    double mean = 0, half_range = 0;
    int count = 0;
  };
  /// Mean and half of the range over the runs that have the value.
  std::optional<Spread> spread(std::optional<double> PointResult::*value) const;
};

struct SweepResults {
  SweepRecord record;
  std::vector<PointResult> points;
  std::vector<std::string> axes;  // all there are, in the order of appearance
  std::vector<SettingResult> settings() const;
};

/// Of the points of `record`, by what a sweep's folder holds.
SweepResults read_results(const std::filesystem::path& folder, SweepRecord record);

/// A line a point, with a header.
std::string to_csv(const SweepResults& results);
nlohmann::json to_json(const SweepResults& results);

}  // namespace scone
