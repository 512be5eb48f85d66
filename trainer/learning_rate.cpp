#include "trainer/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace scone {

double learning_rate(const RunConfig& config, std::int64_t step) {
  const auto& optimizer = config.optimizer;
  const double peak = optimizer.peak_lr;
  if (step < optimizer.warmup_steps)
    return peak * static_cast<double>(step + 1) / static_cast<double>(optimizer.warmup_steps);
  const double lowest = peak * optimizer.final_lr_ratio;
  const auto total = static_cast<double>(config.total_steps());
  const auto now = static_cast<double>(step);
  switch (optimizer.schedule) {
    case Schedule::constant:
      return peak;
    case Schedule::cosine: {
      const auto warmup = static_cast<double>(optimizer.warmup_steps);
      const double progress = std::clamp((now - warmup) / std::max(1.0, total - warmup), 0.0, 1.0);
      return lowest + (peak - lowest) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
    }
    case Schedule::wsd: {
      const double decay_steps = std::max(1.0, total * optimizer.decay_fraction);
      const double left = std::clamp((total - now) / decay_steps, 0.0, 1.0);
      return lowest + (peak - lowest) * left;
    }
  }
  return peak;
}

}  // namespace scone
