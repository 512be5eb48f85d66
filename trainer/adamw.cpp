#include "trainer/adamw.h"

namespace scone {

AdamW::AdamW(ParameterSet& parameters, Backend& backend, const AdamWSettings& settings)
    : parameters_(parameters), backend_(backend), settings_(settings) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Shape& shape = parameters.value(i).shape();
    first_moments_.push_back(Tensor::zeros(shape, DType::fp32, backend.device()));
    second_moments_.push_back(Tensor::zeros(shape, DType::fp32, backend.device()));
  }
}

void AdamW::step(std::int64_t step, double lr, double gradient_scale) {
  AdamwStep update{.lr = static_cast<float>(lr),
                   .beta1 = static_cast<float>(settings_.beta1),
                   .beta2 = static_cast<float>(settings_.beta2),
                   .eps = static_cast<float>(settings_.epsilon),
                   .weight_decay = 0,
                   .step = step,
                   .gradient_scale = static_cast<float>(gradient_scale)};
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    update.weight_decay =
        parameters_.spec(i).weight_decay ? static_cast<float>(settings_.weight_decay) : 0.0F;
    backend_.adamw(parameters_.value(i), parameters_.gradient(i), first_moments_[i],
                   second_moments_[i], update);
  }
}

std::vector<NamedTensor> AdamW::state() const {
  std::vector<NamedTensor> tensors;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    tensors.push_back({"adam_m/" + parameters_.spec(i).name, first_moments_[i]});
    tensors.push_back({"adam_v/" + parameters_.spec(i).name, second_moments_[i]});
  }
  return tensors;
}

std::size_t AdamW::bytes() const {
  std::size_t total = 0;
  for (const Tensor& moment : first_moments_) total += 2 * moment.bytes();
  return total;
}

}  // namespace scone
