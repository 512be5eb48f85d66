#pragma once

#include <string>
#include <vector>

#include "launch/sweep/sweep_config.h"
#include "launch/sweep/sweep_points.h"

namespace scone {

struct LocalOutcome {
  std::vector<std::string> finished, failed;  // names of points; all others are to be gone on with
  bool interrupted = false;                   // by a signal
};

/// Fills in threads, and throws InputError where jobs x ranks x threads are more than this
/// process's cores (unless oversubscribe). The points are given as many threads.
void check_cores(SweepConfig& sweep, std::vector<SweepPoint>& points);

/// Runs the stages that are not done, at most `jobs` at a time, each as `program` with the stage's
/// arguments, under mpirun where there are several ranks. A stage that fails is tried again, up to
/// `retries` times; one that leaves with 75 goes on at once. SIGINT, SIGTERM and SIGHUP end it:
/// training runs save and leave, all else ends at once; a second one kills them.
LocalOutcome run_locally(const SweepConfig& sweep, const std::vector<SweepPoint>& points,
                         const std::string& program);

}  // namespace scone
