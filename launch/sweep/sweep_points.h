#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/sweep/sweep_config.h"
#include "trainer/run_config.h"

namespace scone {

/// The value that a point has on one axis.
struct PointLabel {
  std::string axis, value;
  std::vector<std::string> keys;  // that the value sets
  bool operator==(const PointLabel&) const = default;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PointLabel, axis, value, keys)

/// What is known of a point before it runs.
struct PointFigures {
  std::int64_t steps = 0, tokens = 0;  // of the training
  std::int64_t main_parameters = 0, embedding_parameters = 0, fgram_parameters = 0;
  std::int64_t fgrams = 0;      // that the run may use; 0: a baseline
  int longest_fgram = 0;        // tokens
  double main_flops = 0;        // of a token, main model and head, forward
  double fgram_node_flops = 0;  // of a node of the f-gram model's trie, forward
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PointFigures, steps, tokens, main_parameters,
                                   embedding_parameters, fgram_parameters, fgrams, longest_fgram,
                                   main_flops, fgram_node_flops)

/// One run of a sweep.
struct SweepPoint {
  std::string name;   // unique; of its run folder FOLDER/points/NAME
  std::string group;  // of `points`; may be empty
  std::vector<PointLabel> labels;
  std::optional<std::uint64_t> seed;   // none: the base run's
  std::vector<std::string> overrides;  // of the base run: key=value
  RunConfig config;                    // resolved, with the point's run.folder
  PointFigures figures;                // by describe_points
};

/// All points, in the order of the file: for each entry of `points` the product of the sweep's
/// axes, its own, and the seeds. Each configuration is read and checked as `scone train` does it.
/// Throws InputError naming point, file, line and key: what a run refuses, a key that is set twice,
/// two points of one name or with the same settings.
std::vector<SweepPoint> expand_points(const SweepConfig& sweep);

/// Opens the data of each point as a run does, and fills in the figures. Throws InputError.
void describe_points(std::vector<SweepPoint>& points);

/// The keys of a configuration that decide what a run computes, with their values: all but where it
/// goes, what it logs and saves, and how it uses the machine.
std::map<std::string, std::string> settings_of(const RunConfig& config);

/// "key: BEFORE before, NOW now", a line each setting that differs.
std::vector<std::string> changed_settings(const RunConfig& before, const RunConfig& now);

}  // namespace scone
