#include "model/transformer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "parallel/error.h"

namespace scone {
namespace {

constexpr double kInitDeviation = 0.02;  // GPT-2's

/// Makes tensors and counts their bytes.
class Allocator {
 public:
  Allocator(Device device, std::size_t& bytes) : device_(device), bytes_(bytes) {}
  Tensor operator()(Shape shape) {
    Tensor tensor = Tensor::zeros(std::move(shape), DType::fp32, device_);
    bytes_ += tensor.bytes();
    return tensor;
  }

 private:
  Device device_;
  std::size_t& bytes_;
};

}  // namespace

void validate(const TransformerConfig& config, const std::string& model) {
  const auto require = [&model](bool good, const std::string& key, const std::string& expected,
                                std::int64_t found) {
    if (!good) {
      throw InputError(fmt::format("{}.{} is {}; expected {}", model, key, found, expected));
    }
  };
  require(config.width > 0, "width", "at least 1", config.width);
  require(config.layers >= 0, "layers", "at least 0", config.layers);
  require(config.heads > 0 && config.width % config.heads == 0, "heads",
          fmt::format("a divisor of the width {}", config.width), config.heads);
  require(config.ffw > 0, "ffw", "at least 1", config.ffw);
  require(config.context > 0, "context", "at least 1", config.context);
  if (config.position == PositionKind::rope) {
    require((config.width / config.heads) % 2 == 0, "heads",
            fmt::format("an even head width (width {} / heads) with position rope", config.width),
            config.heads);
  }
}

void append_transformer_specs(const TransformerConfig& config, const std::string& prefix, Grid grid,
                              std::vector<ParameterSpec>& specs) {
  const std::int64_t width = config.width;
  const double residual_deviation =
      kInitDeviation /
      std::sqrt(2.0 * static_cast<double>(std::max<std::int64_t>(1, config.layers)));
  const auto add = [&](const std::string& name, Shape shape, bool decay, double mean,
                       double deviation) {
    specs.push_back({prefix + name, std::move(shape), -1, grid, decay, mean, deviation});
  };
  const auto add_norm = [&](const std::string& name) {
    add(name + ".gain", {width}, false, 1.0, 0.0);
    if (config.norm == NormKind::layernorm && config.bias) {
      add(name + ".bias", {width}, false, 0.0, 0.0);
    }
  };
  const auto add_linear = [&](const std::string& name, std::int64_t out, std::int64_t in,
                              double deviation) {
    add(name + ".weight", {out, in}, true, 0.0, deviation);
    if (config.bias) add(name + ".bias", {out}, false, 0.0, 0.0);
  };
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = fmt::format("blocks.{}.", layer);
    add_norm(block + "attention_norm");
    add_linear(block + "attention.qkv", 3 * width, width, kInitDeviation);
    add_linear(block + "attention.out", width, width, residual_deviation);
    add_norm(block + "ffw_norm");
    if (config.activation == ActivationKind::swiglu) {
      add_linear(block + "ffw.gate", config.ffw, width, kInitDeviation);
    }
    add_linear(block + "ffw.up", config.ffw, width, kInitDeviation);
    add_linear(block + "ffw.down", width, config.ffw, residual_deviation);
  }
  add_norm("final_norm");
}

TransformerActivations::TransformerActivations(const TransformerConfig& config,
                                               std::int64_t row_capacity, bool training,
                                               Device device)
    : rows(row_capacity) {
  Allocator make(device, bytes);
  const std::int64_t width = config.width;
  blocks.resize(static_cast<std::size_t>(config.layers));
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    Block& block = blocks[i];
    if (i > 0 && !training) {
      block = blocks[0];
      continue;
    }
    block.input = make({rows, width});
    block.attention_norm = make({rows, width});
    block.attention_statistics = make({rows, 2});
    block.qkv = make({rows, 3 * width});
    block.attended = make({rows, width});
    block.log_sum_exp = make({rows, config.heads});
    block.middle = training ? make({rows, width}) : block.input;
    block.ffw_norm = make({rows, width});
    block.ffw_statistics = make({rows, 2});
    block.up = make({rows, config.ffw});
    if (config.activation == ActivationKind::swiglu) block.gate = make({rows, config.ffw});
    block.inner = make({rows, config.ffw});
  }
  output_input = training || blocks.empty() ? make({rows, width}) : blocks.back().middle;
  output_statistics = make({rows, 2});
  output = make({rows, width});
}

TransformerScratch::TransformerScratch(const TransformerConfig& config, std::int64_t rows,
                                       Device device) {
  Allocator make(device, bytes);
  d_stream = make({rows, config.width});
  d_norm = make({rows, config.width});
  d_qkv = make({rows, 3 * config.width});
  d_inner = make({rows, config.ffw});
  if (config.activation == ActivationKind::swiglu) d_gate = make({rows, config.ffw});
}

Transformer::Transformer(const TransformerConfig& config, const std::string& prefix,
                         ParameterSet& parameters, Backend& backend)
    : config_(config), backend_(backend) {
  const auto get = [&](const std::string& name) {
    const std::size_t index = parameters.find(prefix + name);
    return Parameter{parameters.value(index), parameters.gradient(index)};
  };
  const auto get_norm = [&](const std::string& name) {
    const bool has_bias = config.norm == NormKind::layernorm && config.bias;
    return Norm{get(name + ".gain"), has_bias ? get(name + ".bias") : Parameter{}};
  };
  const auto get_linear = [&](const std::string& name) {
    return Linear{get(name + ".weight"), config.bias ? get(name + ".bias") : Parameter{}};
  };
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string name = fmt::format("blocks.{}.", layer);
    BlockParameters block;
    block.attention_norm = get_norm(name + "attention_norm");
    block.qkv = get_linear(name + "attention.qkv");
    block.out = get_linear(name + "attention.out");
    block.ffw_norm = get_norm(name + "ffw_norm");
    if (config.activation == ActivationKind::swiglu) block.gate = get_linear(name + "ffw.gate");
    block.up = get_linear(name + "ffw.up");
    block.down = get_linear(name + "ffw.down");
    blocks_.push_back(std::move(block));
  }
  final_norm_ = get_norm("final_norm");
}

void Transformer::norm(const Norm& parameters, const Tensor& x, const Tensor& y,
                       const Tensor& statistics, std::int64_t rows) const {
  backend_.norm(config_.norm, x, parameters.gain.value, parameters.bias.value, y, statistics, rows);
}

void Transformer::linear(const Linear& parameters, const Tensor& x, const Tensor& residual,
                         const Tensor& y, std::int64_t rows) const {
  backend_.linear(x, parameters.weight.value, parameters.bias.value, residual, y, rows);
}

void Transformer::norm_backward(const Norm& parameters, const Tensor& d_y, const Tensor& x,
                                const Tensor& statistics, const Tensor& d_x, bool accumulate,
                                std::int64_t rows) const {
  backend_.norm_backward(config_.norm, d_y, x, parameters.gain.value, statistics, d_x, accumulate,
                         parameters.gain.gradient, parameters.bias.gradient, rows);
}

void Transformer::linear_backward(const Linear& parameters, const Tensor& d_y, const Tensor& x,
                                  const Tensor& d_x, bool accumulate, std::int64_t rows) const {
  backend_.linear_backward_weight(d_y, x, parameters.weight.gradient, parameters.bias.gradient,
                                  rows);
  backend_.linear_backward_input(d_y, parameters.weight.value, d_x, accumulate, rows);
}

void Transformer::forward(TransformerActivations& activations, const Attention& attention,
                          const Tensor& positions, std::int64_t rows) const {
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const BlockParameters& block = blocks_[i];
    const TransformerActivations::Block& saved = activations.blocks[i];
    norm(block.attention_norm, saved.input, saved.attention_norm, saved.attention_statistics, rows);
    linear(block.qkv, saved.attention_norm, {}, saved.qkv, rows);
    if (config_.position == PositionKind::rope) {
      backend_.rope(saved.qkv, positions, config_.heads, config_.width / config_.heads, false,
                    rows);
    }
    attention.forward(backend_, static_cast<std::int64_t>(i), saved.qkv, saved.attended,
                      saved.log_sum_exp);
    linear(block.out, saved.attended, saved.input, saved.middle, rows);

    norm(block.ffw_norm, saved.middle, saved.ffw_norm, saved.ffw_statistics, rows);
    linear(block.up, saved.ffw_norm, {}, saved.up, rows);
    if (config_.activation == ActivationKind::swiglu) {
      linear(block.gate, saved.ffw_norm, {}, saved.gate, rows);
      backend_.swiglu(saved.gate, saved.up, saved.inner, rows * config_.ffw);
    } else {
      backend_.gelu(saved.up, saved.inner, rows * config_.ffw);
    }
    const bool last = i + 1 == blocks_.size();
    const Tensor& next = last ? activations.output_input : activations.blocks[i + 1].input;
    linear(block.down, saved.inner, saved.middle, next, rows);
  }
  norm(final_norm_, activations.output_input, activations.output, activations.output_statistics,
       rows);
}

void Transformer::backward(const TransformerActivations& activations, const Attention& attention,
                           const Tensor& positions, const Tensor& d_output,
                           TransformerScratch& scratch, std::int64_t rows) const {
  const Tensor& d_stream = scratch.d_stream;
  norm_backward(final_norm_, d_output, activations.output_input, activations.output_statistics,
                d_stream, false, rows);
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    const BlockParameters& block = blocks_[i];
    const TransformerActivations::Block& saved = activations.blocks[i];
    linear_backward(block.down, d_stream, saved.inner, scratch.d_inner, false, rows);
    if (config_.activation == ActivationKind::swiglu) {
      backend_.swiglu_backward(scratch.d_inner, saved.gate, saved.up, scratch.d_gate,
                               scratch.d_inner, rows * config_.ffw);
      linear_backward(block.gate, scratch.d_gate, saved.ffw_norm, scratch.d_norm, false, rows);
      linear_backward(block.up, scratch.d_inner, saved.ffw_norm, scratch.d_norm, true, rows);
    } else {
      backend_.gelu_backward(scratch.d_inner, saved.up, scratch.d_inner, rows * config_.ffw);
      linear_backward(block.up, scratch.d_inner, saved.ffw_norm, scratch.d_norm, false, rows);
    }
    norm_backward(block.ffw_norm, scratch.d_norm, saved.middle, saved.ffw_statistics, d_stream,
                  true, rows);

    linear_backward(block.out, d_stream, saved.attended, scratch.d_norm, false, rows);
    attention.backward(backend_, saved.qkv, saved.attended, saved.log_sum_exp, scratch.d_norm,
                       scratch.d_qkv);
    if (config_.position == PositionKind::rope) {
      backend_.rope(scratch.d_qkv, positions, config_.heads, config_.width / config_.heads, true,
                    rows);
    }
    linear_backward(block.qkv, scratch.d_qkv, saved.attention_norm, scratch.d_norm, false, rows);
    norm_backward(block.attention_norm, scratch.d_norm, saved.input, saved.attention_statistics,
                  d_stream, true, rows);
  }
}

}  // namespace scone
