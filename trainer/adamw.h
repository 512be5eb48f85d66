#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/ops/ops.h"
#include "model/parameter.h"

namespace scone {

struct AdamWSettings {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0;  // where the ParameterSpec says so
};

/// AdamW over one parameter set; holds both fp32 moments.
class AdamW {
 public:
  AdamW(ParameterSet& parameters, Backend& backend, const AdamWSettings& settings);

  /// Updates all values. step: 1 for the first update. gradient_scale multiplies the gradients
  /// first (clipping).
  void step(std::int64_t step, double lr, double gradient_scale);

  /// The moments as "adam_m/<parameter>" and "adam_v/<parameter>", which share this object's
  /// memory.
  std::vector<NamedTensor> state() const;
  std::size_t bytes() const;

 private:
  ParameterSet& parameters_;
  Backend& backend_;
  AdamWSettings settings_;
  std::vector<Tensor> first_moments_, second_moments_;
};

}  // namespace scone
