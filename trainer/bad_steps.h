#pragma once

#include <cstdint>
#include <deque>
#include <nlohmann/json.hpp>
#include <string>

namespace scone {

/// Tells which steps are bad: loss or gradient norm not finite, or beyond `sigma` standard
/// deviations above the mean of the last `window` good steps. Its decisions depend on its inputs
/// alone, so that all ranks, given the same numbers, decide alike.
class BadSteps {
 public:
  /// sigma 0: only what is not finite is bad. Deviations are judged from `window` good steps on.
  BadSteps(double sigma, std::int64_t window) : sigma_(sigma), window_(window) {}

  /// Why the step is bad, "" where it is good; a good step joins the window.
  std::string judge(double loss, double gradient_norm);
  std::int64_t in_a_row() const { return in_a_row_; }

  /// The window and the count, for checkpoints; numbers survive exactly.
  nlohmann::json state() const;
  void restore(const nlohmann::json& state);

 private:
  double sigma_;
  std::int64_t window_;
  std::deque<double> losses_, gradient_norms_;
  std::int64_t in_a_row_ = 0;
};

}  // namespace scone
