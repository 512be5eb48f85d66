#pragma once

#include <algorithm>
#include <cmath>

namespace scone {

/// The larger of two errors; infinity where one is not a number, which std::max may drop.
inline double worse(double a, double b) {
  return std::isnan(a) || std::isnan(b) ? INFINITY : std::max(a, b);
}

}  // namespace scone
