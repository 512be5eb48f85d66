#include "model/transformer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "parallel/error.h"

namespace scone {
namespace {

constexpr double kInitDeviation = 0.02;  // GPT-2's

}  // namespace

/// Makes tensors and counts their bytes; with no device it only counts.
class CountingAllocator {
 public:
  CountingAllocator(DType dtype, std::optional<Device> device, std::size_t& bytes)
      : dtype_(dtype), device_(device), bytes_(bytes) {}
  Tensor operator()(const Shape& shape) { return make(shape, dtype_); }
  Tensor fp32(const Shape& shape) { return make(shape, DType::fp32); }

 private:
  Tensor make(const Shape& shape, DType dtype) {
    bytes_ += std::accumulate(shape.begin(), shape.end(), size_of(dtype),
                              [](std::size_t product, std::int64_t extent) {
                                return product * static_cast<std::size_t>(extent);
                              });
    return device_ ? Tensor::zeros(shape, dtype, *device_) : Tensor{};
  }

  DType dtype_;
  std::optional<Device> device_;
  std::size_t& bytes_;
};

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

void validate_tensor_parallel(const TransformerConfig& config, const std::string& model,
                              int tensor_parallel, const std::string& tp_key) {
  const auto require = [&](const char* key, std::int64_t extent) {
    if (extent % tensor_parallel == 0) return;
    std::int64_t below = tensor_parallel, above = tensor_parallel;
    while (extent % below != 0) --below;
    while (above < extent && extent % above != 0) ++above;
    throw InputError(fmt::format(
        "{}: {} does not divide {}.{} {}; the nearest valid values are {}", tp_key, tensor_parallel,
        model, key, extent,
        above > extent ? fmt::format("{}", below) : fmt::format("{} and {}", below, above)));
  };
  require("heads", config.heads);
  require("ffw", config.ffw);
}

void append_transformer_specs(const TransformerConfig& config, const std::string& prefix, Grid grid,
                              std::vector<ParameterSpec>& specs) {
  const std::int64_t width = config.width;
  const double residual_deviation =
      kInitDeviation /
      std::sqrt(2.0 * static_cast<double>(std::max<std::int64_t>(1, config.layers)));
  constexpr Sharding by_column{.axis = 0}, by_row{.axis = 1}, by_head{.axis = 0, .sections = 3};
  const auto add = [&](const std::string& name, Shape shape, const Sharding& sharding, bool decay,
                       double mean, double deviation) -> ParameterSpec& {
    return specs.emplace_back(ParameterSpec{.name = prefix + name,
                                            .shape = std::move(shape),
                                            .sharding = sharding,
                                            .grid = grid,
                                            .weight_decay = decay,
                                            .init_mean = mean,
                                            .init_std = deviation});
  };
  const auto add_norm = [&](const std::string& name) {
    add(name + ".gain", {width}, {}, false, 1.0, 0.0).sums_rows = true;
    if (config.norm == NormKind::layernorm && config.bias) {
      add(name + ".bias", {width}, {}, false, 0.0, 0.0).sums_rows = true;
    }
  };
  const auto add_linear = [&](const std::string& name, std::int64_t out, std::int64_t in,
                              const Sharding& sharding, double deviation) {
    add(name + ".weight", {out, in}, sharding, true, 0.0, deviation);
    const bool cut = sharding.axis == 0;
    if (config.bias) add(name + ".bias", {out}, cut ? sharding : Sharding{}, false, 0.0, 0.0);
  };
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = fmt::format("blocks.{}.", layer);
    add_norm(block + "attention_norm");
    add_linear(block + "attention.qkv", 3 * width, width, by_head, kInitDeviation);
    add_linear(block + "attention.out", width, width, by_row, residual_deviation);
    add_norm(block + "ffw_norm");
    if (config.activation == ActivationKind::swiglu) {
      add_linear(block + "ffw.gate", config.ffw, width, by_column, kInitDeviation);
    }
    add_linear(block + "ffw.up", config.ffw, width, by_column, kInitDeviation);
    add_linear(block + "ffw.down", width, config.ffw, by_row, residual_deviation);
  }
  add_norm("final_norm");
}

TransformerShape::TransformerShape(const TransformerConfig& config, const TensorParallelSize& tp,
                                   std::int64_t most_rows, DType compute_dtype)
    : dtype(compute_dtype),
      rows(most_rows),
      own_rows(tp.own_capacity(most_rows)),
      width(config.width),
      own_width(config.width / tp.ranks),
      own_heads(config.heads / tp.ranks),
      own_ffw(config.ffw / tp.ranks),
      gated(config.activation == ActivationKind::swiglu) {}

TransformerActivations::TransformerActivations(const TransformerConfig& config,
                                               const TransformerShape& shape, bool training,
                                               Recompute recompute, Device device) {
  CountingAllocator make(shape.dtype, device, bytes);
  allocate(make, config, shape, training, recompute);
}

std::size_t TransformerActivations::bytes_of(const TransformerConfig& config,
                                             const TransformerShape& shape, bool training,
                                             Recompute recompute) {
  TransformerActivations counted;
  CountingAllocator count(shape.dtype, std::nullopt, counted.bytes);
  counted.allocate(count, config, shape, training, recompute);
  return counted.bytes;
}

void TransformerActivations::allocate(CountingAllocator& make, const TransformerConfig& config,
                                      const TransformerShape& shape, bool training,
                                      Recompute recompute) {
  blocks.resize(static_cast<std::size_t>(config.layers));
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    Block& block = blocks[i];
    const bool keeps = i == 0 || training;
    if (!keeps) {
      block = blocks[0];
      continue;
    }
    if (i > 0) block = blocks[0];  // what is not replaced below is shared
    block.input = make({shape.own_rows, shape.width});
    if (i == 0 || recompute == Recompute::none) {
      block.attention_norm = make({shape.own_rows, shape.width});
      block.attention_statistics = make.fp32({shape.own_rows, 2});
      block.qkv = make({shape.rows, 3 * shape.own_width});
      block.attended = make({shape.rows, shape.own_width});
      block.log_sum_exp = make.fp32({shape.rows, shape.own_heads});
    }
    if (i > 0 && recompute == Recompute::block) continue;
    block.middle = training ? make({shape.own_rows, shape.width}) : block.input;
    block.ffw_norm = make({shape.own_rows, shape.width});
    block.ffw_statistics = make.fp32({shape.own_rows, 2});
    block.up = make({shape.rows, shape.own_ffw});
    if (shape.gated) block.gate = make({shape.rows, shape.own_ffw});
    block.inner = make({shape.rows, shape.own_ffw});
  }
  output_input =
      training || blocks.empty() ? make({shape.own_rows, shape.width}) : blocks.back().middle;
  output_statistics = make.fp32({shape.own_rows, 2});
  output = make({shape.own_rows, shape.width});
}

TransformerScratch::TransformerScratch(const TransformerShape& shape, bool splits_rows,
                                       Device device) {
  CountingAllocator make(shape.dtype, device, bytes);
  allocate(make, shape, splits_rows);
}

std::size_t TransformerScratch::bytes_of(const TransformerShape& shape, bool splits_rows) {
  TransformerScratch counted;
  CountingAllocator count(shape.dtype, std::nullopt, counted.bytes);
  counted.allocate(count, shape, splits_rows);
  return counted.bytes;
}

void TransformerScratch::allocate(CountingAllocator& make, const TransformerShape& shape,
                                  bool splits_rows) {
  d_stream = make({shape.own_rows, shape.width});
  d_norm = make({shape.rows, shape.width});
  d_norm_own = splits_rows ? make({shape.own_rows, shape.width}) : d_norm;
  d_qkv = make({shape.rows, 3 * shape.own_width});
  d_inner = make({shape.rows, shape.own_ffw});
  if (shape.gated) d_gate = make({shape.rows, shape.own_ffw});
}

Transformer::Transformer(const TransformerConfig& config, const std::string& prefix,
                         ParameterSet& parameters, Backend& backend, const TensorParallel& tp,
                         std::int64_t most_rows, Recompute recompute)
    : config_(config),
      backend_(backend),
      tp_(tp),
      shape_(config, tp.shape(), most_rows, parameters.dtype()),
      recompute_(recompute) {
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
    block.offset = parameters.offset(parameters.find(prefix + name + "attention_norm.gain"));
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
  if (tp_.splits_rows())
    full_ = Tensor::zeros({shape_.rows, shape_.width}, shape_.dtype, backend.device());
}

void Transformer::norm(const Norm& parameters, const Tensor& x, const Tensor& y,
                       const Tensor& statistics, std::int64_t rows) const {
  backend_.norm(config_.norm, x, parameters.gain.value, parameters.bias.value, y, statistics,
                tp_.own_rows(rows).count);
}

void Transformer::column_linear(const Linear& parameters, const Tensor& x, const Tensor& y,
                                std::int64_t rows) const {
  backend_.linear(x, parameters.weight.value, parameters.bias.value, {}, y, rows);
}

void Transformer::row_linear(const Linear& parameters, const Tensor& x, const Tensor& residual,
                             const Tensor& y, std::int64_t rows) const {
  const Tensor& weight = parameters.weight.value;
  const Tensor& bias = parameters.bias.value;
  if (!tp_.splits_rows()) {  // one rank of the group adds what must be added once
    const bool adds = tp_.rank() == 0;
    backend_.linear(x, weight, adds ? bias : Tensor{}, adds ? residual : Tensor{}, y, rows);
    tp_.reduce(y, y, rows);
    return;
  }
  const Slice own = tp_.own_rows(rows);  // each rank adds to the rows that it holds
  const auto part = [&](std::int64_t begin, std::int64_t count, bool adds) {
    if (count == 0) return;
    backend_.linear(x.rows(begin, count), weight, adds ? bias : Tensor{},
                    adds ? residual : Tensor{}, full_.rows(begin, count), count);
  };
  part(0, own.begin, false);
  part(own.begin, own.count, true);
  part(own.begin + own.count, rows - own.begin - own.count, false);
  tp_.reduce(full_, y, rows);
}

void Transformer::norm_backward(const Norm& parameters, const Tensor& d_y, const Tensor& x,
                                const Tensor& statistics, const Tensor& d_x, bool accumulate,
                                std::int64_t rows) const {
  backend_.norm_backward(config_.norm, d_y, x, parameters.gain.value, statistics, d_x, accumulate,
                         parameters.gain.gradient, parameters.bias.gradient,
                         tp_.own_rows(rows).count);
}

void Transformer::linear_backward(const Linear& parameters, const Tensor& d_y, const Tensor& x,
                                  const Tensor& d_x, bool accumulate, std::int64_t rows) const {
  backend_.linear_backward_weight(d_y, x, parameters.weight.gradient, parameters.bias.gradient,
                                  rows);
  backend_.linear_backward_input(d_y, parameters.weight.value, d_x, accumulate, rows);
}

void Transformer::attend(std::size_t index, const Block& saved, const Attention& attention,
                         const Tensor& positions, std::int64_t rows) const {
  const BlockParameters& block = blocks_[index];
  norm(block.attention_norm, saved.input, saved.attention_norm, saved.attention_statistics, rows);
  column_linear(block.qkv, tp_.gather(backend_, saved.attention_norm, full_, rows), saved.qkv,
                rows);
  if (config_.position == PositionKind::rope) {
    backend_.rope(saved.qkv, positions, shape_.own_heads, config_.width / config_.heads, false,
                  rows);
  }
  attention.forward(backend_, static_cast<std::int64_t>(index), saved.qkv, saved.attended,
                    saved.log_sum_exp);
}

void Transformer::feed_forward(const BlockParameters& block, const Block& saved,
                               std::int64_t rows) const {
  norm(block.ffw_norm, saved.middle, saved.ffw_norm, saved.ffw_statistics, rows);
  const Tensor x = tp_.gather(backend_, saved.ffw_norm, full_, rows);
  if (shape_.gated) {
    column_linear(block.up, x, saved.up, rows);
    column_linear(block.gate, x, saved.gate, rows);
    backend_.swiglu(saved.gate, saved.up, saved.inner, rows * shape_.own_ffw);
  } else {
    backend_.linear_gelu(x, block.up.weight.value, block.up.bias.value, saved.up, saved.inner,
                         rows);
  }
}

void Transformer::forward(TransformerActivations& activations, const Attention& attention,
                          const Tensor& positions, std::int64_t rows) const {
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const BlockParameters& block = blocks_[i];
    const Block& saved = activations.blocks[i];
    attend(i, saved, attention, positions, rows);
    row_linear(block.out, saved.attended, saved.input, saved.middle, rows);
    feed_forward(block, saved, rows);
    const bool last = i + 1 == blocks_.size();
    const Tensor& next = last ? activations.output_input : activations.blocks[i + 1].input;
    row_linear(block.down, saved.inner, saved.middle, next, rows);
  }
  norm(final_norm_, activations.output_input, activations.output, activations.output_statistics,
       rows);
}

void Transformer::backward(const TransformerActivations& activations, const Attention& attention,
                           const Tensor& positions, const Tensor& d_output,
                           TransformerScratch& scratch, std::int64_t rows,
                           const std::function<void(std::int64_t offset)>& after_block) const {
  const Tensor& d_stream = scratch.d_stream;
  norm_backward(final_norm_, d_output, activations.output_input, activations.output_statistics,
                d_stream, false, rows);
  for (std::size_t i = blocks_.size(); i-- > 0;) {
    const BlockParameters& block = blocks_[i];
    const Block& saved = activations.blocks[i];
    // What blocks share is still the last one's when the backward pass begins.
    const bool shared_is_own = recompute_ == Recompute::none || i + 1 == blocks_.size();
    if (!shared_is_own) attend(i, saved, attention, positions, rows);
    if (!shared_is_own && recompute_ == Recompute::block) {
      row_linear(block.out, saved.attended, saved.input, saved.middle, rows);
      feed_forward(block, saved, rows);
    }
    const Tensor d_down = tp_.gather(backend_, d_stream, full_, rows);
    backend_.linear_backward_weight(d_down, saved.inner, block.down.weight.gradient,
                                    block.down.bias.gradient, rows);
    if (shape_.gated) {
      backend_.linear_backward_input(d_down, block.down.weight.value, scratch.d_inner, false, rows);
    } else {  // d_inner: gradient before the activation
      backend_.linear_gelu_backward_input(d_down, block.down.weight.value, saved.up,
                                          scratch.d_inner, rows);
    }
    const Tensor ffw_input = tp_.gather(backend_, saved.ffw_norm, full_, rows);
    if (shape_.gated) {
      backend_.swiglu_backward(scratch.d_inner, saved.gate, saved.up, scratch.d_gate,
                               scratch.d_inner, rows * shape_.own_ffw);
      linear_backward(block.gate, scratch.d_gate, ffw_input, scratch.d_norm, false, rows);
      linear_backward(block.up, scratch.d_inner, ffw_input, scratch.d_norm, true, rows);
    } else {
      linear_backward(block.up, scratch.d_inner, ffw_input, scratch.d_norm, false, rows);
    }
    tp_.reduce(scratch.d_norm, scratch.d_norm_own, rows);
    norm_backward(block.ffw_norm, scratch.d_norm_own, saved.middle, saved.ffw_statistics, d_stream,
                  true, rows);

    linear_backward(block.out, tp_.gather(backend_, d_stream, full_, rows), saved.attended,
                    scratch.d_norm, false, rows);
    attention.backward(backend_, saved.qkv, saved.attended, saved.log_sum_exp, scratch.d_norm,
                       scratch.d_qkv);
    if (config_.position == PositionKind::rope) {
      backend_.rope(scratch.d_qkv, positions, shape_.own_heads, config_.width / config_.heads, true,
                    rows);
    }
    linear_backward(block.qkv, scratch.d_qkv,
                    tp_.gather(backend_, saved.attention_norm, full_, rows), scratch.d_norm, false,
                    rows);
    tp_.reduce(scratch.d_norm, scratch.d_norm_own, rows);
    norm_backward(block.attention_norm, scratch.d_norm_own, saved.input, saved.attention_statistics,
                  d_stream, true, rows);
    if (after_block) after_block(block.offset);
  }
}

void Transformer::no_backward(const std::function<void(std::int64_t offset)>& after_block) const {
  for (std::size_t i = blocks_.size(); after_block && i-- > 0;) after_block(blocks_[i].offset);
}

}  // namespace scone
