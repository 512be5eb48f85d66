#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "launch/sweep/sweep_config.h"
#include "launch/sweep/sweep_points.h"

namespace scone {

/// An array job that was submitted.
struct ArrayJob {
  std::string id, stage;
  std::vector<std::string> points;  // their names
};

/// Where in Slurm a point is.
struct QueuedPoint {
  std::string state;  // queued, running; failed: has left the queue without a result
  std::string stage;  // of the job at hand
  std::filesystem::path log;
};

/// What Slurm's queue says of the points of a sweep that were submitted, by name. Throws
/// std::runtime_error with squeue's message where it cannot be asked.
std::map<std::string, QueuedPoint> read_queue(const std::filesystem::path& folder);

/// Submits the stages that are neither done nor in the queue: an array of trainings, and arrays of
/// bakes and evaluations whose tasks wait for those that they read, one for one. `program` is what
/// the tasks run. Throws InputError with sbatch's own message where Slurm refuses a job; what was
/// submitted before it is cancelled then.
std::vector<ArrayJob> submit_to_slurm(const SweepConfig& sweep,
                                      const std::vector<SweepPoint>& points,
                                      const std::string& program);

}  // namespace scone
