#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/plan/run_plan.h"

namespace scone {

/// Of one plan: memory by purpose, FLOPs, collectives by link, seconds by part; where it does not
/// fit, says so.
std::string describe_plan(const RunPlan& plan, const FgramLoad& load, const DeviceFigures& device,
                          const VocabularyBytes& vocabulary);
/// A row a plan of the first `most`, fastest first.
std::string describe_grids(const std::vector<RunPlan>& plans, std::size_t most,
                           const DeviceFigures& device);

nlohmann::json to_json(const RunPlan& plan, const DeviceFigures& device,
                       const VocabularyBytes& vocabulary);
nlohmann::json to_json(const DeviceFigures& device);
/// Choices and results of one row of describe_grids.
nlohmann::json grid_json(const RunPlan& plan);

}  // namespace scone
