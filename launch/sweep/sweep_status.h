#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/sweep/sweep_folder.h"

namespace scone {

/// How far a point is.
struct PointStatus {
  std::string name;
  // waiting, queued (in Slurm), running, interrupted, failed, finished, unknown (no Slurm to ask)
  std::string state;
  std::string stage;                 // the one at hand; empty: finished
  std::int64_t step = 0, steps = 0;  // of its training
  std::optional<double> loss;        // of the last step, once finished of the evaluation
  std::optional<double> tokens_per_second, seconds_left;  // of its training
  std::vector<std::string> log;                           // last lines, where it failed
};

/// Of each point of `record`, in its order, by what a sweep's folder holds, which need not exist.
/// Asks Slurm where `record` says that it is the launcher.
std::vector<PointStatus> read_status(const std::filesystem::path& folder,
                                     const SweepRecord& record);

/// One line, such as "NAME: train, step 120/3662, loss 4.2100, 5100 tokens/s, 10m 12s left".
std::string describe(const PointStatus& status);

/// A row a point, with a line of totals.
std::string format_table(const std::vector<PointStatus>& statuses);

nlohmann::json to_json(const std::vector<PointStatus>& statuses);

/// The objects of a metrics.jsonl; a line that is cut short, as of a run that is writing, is left
/// out. Empty where there is no file.
std::vector<nlohmann::json> read_metrics(const std::filesystem::path& file);

}  // namespace scone
