#include "trainer/bad_steps.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>

namespace scone {
namespace {

/// Standard deviations of `value` above the mean of `window`; 0 where all of the window is equal.
double deviations(const std::deque<double>& window, double value) {
  const auto count = static_cast<double>(window.size());
  const double mean = std::accumulate(window.begin(), window.end(), 0.0) / count;
  double variance = 0;
  for (const double x : window) variance += (x - mean) * (x - mean) / count;
  return variance > 0 ? (value - mean) / std::sqrt(variance) : 0;
}

}  // namespace

std::string BadSteps::judge(double loss, double gradient_norm) {
  std::string why;
  if (!std::isfinite(loss) || !std::isfinite(gradient_norm)) {
    why = fmt::format("loss {} and gradient norm {} are not both finite", loss, gradient_norm);
  } else if (sigma_ > 0 && static_cast<std::int64_t>(losses_.size()) >= window_) {
    const double of_loss = deviations(losses_, loss);
    const double of_norm = deviations(gradient_norms_, gradient_norm);
    if (of_loss > sigma_ || of_norm > sigma_)
      why = fmt::format(
          "loss {:.4f} and gradient norm {:.3f} are {:.1f} and {:.1f} standard deviations above "
          "the "
          "last {} steps' mean (trainer.bad_step_sigma {})",
          loss, gradient_norm, of_loss, of_norm, window_, sigma_);
  }
  in_a_row_ = why.empty() ? 0 : in_a_row_ + 1;
  if (!why.empty() || sigma_ <= 0) return why;
  losses_.push_back(loss);
  gradient_norms_.push_back(gradient_norm);
  if (static_cast<std::int64_t>(losses_.size()) > window_) {
    losses_.pop_front();
    gradient_norms_.pop_front();
  }
  return why;
}

nlohmann::json BadSteps::state() const {
  return {{"losses", losses_}, {"gradient_norms", gradient_norms_}, {"in_a_row", in_a_row_}};
}

void BadSteps::restore(const nlohmann::json& state) {
  losses_ = state.at("losses").get<std::deque<double>>();
  gradient_norms_ = state.at("gradient_norms").get<std::deque<double>>();
  in_a_row_ = state.at("in_a_row");
  while (static_cast<std::int64_t>(losses_.size()) > window_) {
    losses_.pop_front();
    gradient_norms_.pop_front();
  }
}

}  // namespace scone
