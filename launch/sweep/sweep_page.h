#pragma once

#include <string>

#include "launch/sweep/sweep_results.h"

namespace scone {

/// The report as one HTML page that needs nothing else: plots of perplexity against f-grams, f-gram
/// parameters, training and inference FLOPs, the loss curves, and tables. `sweep_file`: the text of
/// the sweep's YAML, shown at the end.
std::string make_page(const SweepResults& results, const std::string& sweep_file);

}  // namespace scone
