#include "model/main_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "model/ops/ops.h"
#include "model/transformer.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// Of rows of the head: matrix units want aligned rows of logits, and whole tiles.
constexpr std::int64_t kHeadMultiple = 64;

/// Positions whose logits exist at a time: few enough for a cache on the processor, enough to fill
/// an accelerator.
std::int64_t head_tile(Device device) { return device == Device::cpu ? 512 : 8192; }

class CausalAttention final : public Attention {
 public:
  CausalAttention(const CausalShape& shape, const Tensor& start) : shape_(shape), start_(start) {}
  void forward(Backend& backend, std::int64_t, const Tensor& qkv, const Tensor& out,
               const Tensor& log_sum_exp) const override {
    backend.causal_attention(shape_, qkv, start_, out, log_sum_exp);
  }
  void backward(Backend& backend, const Tensor& qkv, const Tensor& out, const Tensor& log_sum_exp,
                const Tensor& d_out, const Tensor& d_qkv) const override {
    backend.causal_attention_backward(shape_, qkv, start_, out, log_sum_exp, d_out, d_qkv);
  }

 private:
  CausalShape shape_;
  const Tensor& start_;
};

class CachedAttention final : public Attention {
 public:
  CachedAttention(const TransformerConfig& config, const Tensor& entries, std::int64_t past,
                  std::int64_t rows)
      : config_(config), entries_(entries), past_(past), rows_(rows) {}
  void forward(Backend& backend, std::int64_t layer, const Tensor& qkv, const Tensor& out,
               const Tensor&) const override {
    const Tensor own = entries_.rows(layer, 1).view({config_.context, 2 * config_.width});
    backend.cached_attention(qkv, own, past_, config_.heads, config_.width / config_.heads, out,
                             rows_);
  }
  void backward(Backend&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                const Tensor&) const override {
    throw std::logic_error("attention with a cache has no backward pass");
  }

 private:
  const TransformerConfig& config_;
  const Tensor& entries_;
  std::int64_t past_, rows_;
};

void check_range(std::span<const std::int32_t> values, std::int64_t lowest, std::int64_t limit,
                 const char* what) {
  for (const std::int32_t value : values) {
    if (value < lowest || value >= limit) {
      throw std::out_of_range(fmt::format("{} {} is outside [{}, {})", what, value, lowest, limit));
    }
  }
}

}  // namespace

std::vector<ParameterSpec> main_parameter_specs(const ModelConfig& config) {
  validate(config.main, "model.main");
  if (config.vocabulary_size < 1) {
    throw InputError(
        fmt::format("vocabulary size is {}; expected at least 1", config.vocabulary_size));
  }
  const Shape table = {config.vocabulary_size, config.main.width};
  std::vector<ParameterSpec> specs;
  const ParameterSpec of_tokens{.name = "main.token_embedding",
                                .shape = table,
                                .sharding = {.axis = 0},
                                .grid = Grid::main,
                                .weight_decay = true,
                                .init_std = 0.02};
  specs.push_back(of_tokens);
  if (config.tie_embeddings) specs.back().padded_rows = kHeadMultiple;
  if (config.main.position == PositionKind::learned) {
    specs.push_back({.name = "main.position_embedding",
                     .shape = {config.main.context, config.main.width},
                     .grid = Grid::main,
                     .weight_decay = false,
                     .init_std = 0.02});
  }
  append_transformer_specs(config.main, "main.", Grid::main, specs);
  if (!config.tie_embeddings) {
    specs.push_back(of_tokens);
    specs.back().name = "main.head";
    specs.back().padded_rows = kHeadMultiple;
  }
  return specs;
}

KeyValueCache::KeyValueCache(const TransformerConfig& config, Device device, DType dtype)
    : entries_(Tensor::zeros({config.layers, config.context, 2 * config.width}, dtype, device)) {}

struct MainModel::State {
  ModelConfig config;
  ParameterSet& parameters;
  Backend& backend;
  MainModelOptions options;
  TensorParallel tp;
  Transformer transformer;
  TransformerActivations activations;
  TransformerScratch scratch;
  Tensor token_embedding, d_token_embedding, position_embedding, d_position_embedding;
  Tensor head, d_head;                   // this rank's part, with the zero rows that follow it
  std::int64_t first_token, own_tokens;  // of this rank's part of the vocabulary
  Tensor tokens, positions, rows, targets, starts;  // int32 [max_positions]
  Tensor losses;                                    // [max_positions]
  std::int64_t tile = 0;                            // positions whose logits exist at a time
  Tensor logits;                                    // [tile, rows of head]
  Tensor statistics;              // [tensor-parallel ranks, tile, 3] of the logits
  Tensor full;                    // [max_positions, width] where rows are split
  Tensor d_output, d_output_own;  // [max_positions, width], [own, width]: the same if not split
  std::vector<std::int32_t> host_positions, host_tokens;

  State(const ModelConfig& model, ParameterSet& set, Backend& device_backend,
        const MainModelOptions& model_options)
      : config(model),
        parameters(set),
        backend(device_backend),
        options(model_options),
        tp(model_options.tp),
        transformer(model.main, "main.", set, device_backend, tp, options.max_positions,
                    options.recompute),
        activations(model.main, transformer.shape(), options.training, options.recompute,
                    device_backend.device()) {
    const Device device = backend.device();
    const DType dtype = parameters.dtype();
    const std::int64_t max_positions = options.max_positions, width = config.main.width;
    const auto get = [&](const std::string& name, Tensor& value, Tensor& gradient) {
      const std::size_t index = parameters.find(name);
      value = parameters.value(index);
      gradient = parameters.gradient(index);
    };
    get("main.token_embedding", token_embedding, d_token_embedding);
    if (config.main.position == PositionKind::learned) {
      get("main.position_embedding", position_embedding, d_position_embedding);
    }
    const std::size_t head_index =
        parameters.find(config.tie_embeddings ? "main.token_embedding" : "main.head");
    head = parameters.padded_value(head_index);
    d_head = parameters.padded_gradient(head_index);
    const Slice own = slice_of(config.vocabulary_size, tp.part());
    first_token = own.begin;
    own_tokens = own.count;
    for (Tensor* integers : {&tokens, &positions, &rows, &targets, &starts}) {
      *integers = Tensor::zeros({max_positions}, DType::int32, device);
    }
    losses = Tensor::zeros({max_positions}, DType::fp32, device);
    tile = std::min(head_tile(device), max_positions);
    logits = Tensor::zeros({tile, head.dim(0)}, dtype, device);
    if (tp.size() > 1) statistics = Tensor::zeros({tp.size(), tile, 3}, DType::fp32, device);
    if (tp.splits_rows()) full = Tensor::zeros({max_positions, width}, dtype, device);
    if (options.training) {
      scratch = TransformerScratch(transformer.shape(), tp.splits_rows(), device);
      d_output = Tensor::zeros({max_positions, width}, dtype, device);
      d_output_own = tp.splits_rows()
                         ? Tensor::zeros({tp.own_capacity(max_positions), width}, dtype, device)
                         : d_output;
    }
    host_positions.resize(static_cast<std::size_t>(max_positions));
    host_tokens.resize(static_cast<std::size_t>(max_positions));
  }

  EmbeddingInput embedding_input(bool has_rows) const {
    return {tokens, positions, has_rows ? rows : Tensor{}, config.combine};
  }

  void load(const MicroBatch& batch, const Tensor& row_table) {
    const std::int64_t count = batch.positions();
    if (batch.length > config.main.context || count > options.max_positions) {
      throw std::out_of_range(fmt::format(
          "microbatch of {} x {} positions; the model takes sequences of {} and {} positions",
          batch.sequences, batch.length, config.main.context, options.max_positions));
    }
    const std::int64_t table_rows = row_table.empty() ? 0 : row_table.dim(0);
    check_range(batch.tokens, 0, config.vocabulary_size, "token id");
    check_range(batch.targets, -1, config.vocabulary_size, "target");
    check_range(batch.row_of_position, tp.size() > 1 ? kRowElsewhere : -1, table_rows,
                "f-gram row");
    for (std::int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(i);
      host_positions[at] = static_cast<std::int32_t>(i % batch.length);
      host_tokens[at] = own_token(batch.tokens[at]);
      if (batch.attention_start[at] < 0 || batch.attention_start[at] > host_positions[at]) {
        throw std::out_of_range(fmt::format("attention start {} of position {}",
                                            batch.attention_start[at], host_positions[at]));
      }
    }
    const auto size = static_cast<std::size_t>(count);
    backend.upload(std::span<const std::int32_t>(host_tokens).first(size), tokens);
    backend.upload(batch.targets, targets);
    backend.upload(batch.attention_start, starts);
    backend.upload(batch.row_of_position, rows);
    backend.upload(std::span<const std::int32_t>(host_positions).first(size), positions);
  }

  /// Row of this rank's part of the token embedding, or -1.
  std::int32_t own_token(std::int32_t token) const {
    const std::int64_t row = token - first_token;
    return row >= 0 && row < own_tokens ? static_cast<std::int32_t>(row) : -1;
  }

  CausalShape shape_of(const MicroBatch& batch) const {
    return {batch.sequences, batch.length, transformer.shape().own_heads,
            config.main.width / config.main.heads};
  }

  /// The input embeddings, each summed over the ranks that hold its parts.
  void embed(bool has_rows, const Tensor& row_table, std::int64_t count) {
    const Tensor& out = tp.splits_rows() ? full : activations.input();
    backend.embed(embedding_input(has_rows), token_embedding,
                  tp.rank() == 0 ? position_embedding : Tensor{}, row_table, out, count);
    tp.reduce(out, activations.input(), count);
  }

  void cross_entropy(std::int64_t begin, std::int64_t count, bool with_gradient, float scale) {
    const Tensor target = targets.rows(begin, count), loss = losses.rows(begin, count);
    if (tp.size() == 1) {
      backend.cross_entropy(logits, target, own_tokens, loss, with_gradient, scale, count);
      return;
    }
    const Tensor all = statistics.view({tp.size(), count, 3});
    backend.cross_entropy_part(logits, target, first_token, own_tokens,
                               all.rows(tp.rank(), 1).view({count, 3}), count);
    tp.group()->all_gather(all.span<float>(), std::vector<std::int64_t>(
                                                  static_cast<std::size_t>(tp.size()), count * 3));
    backend.cross_entropy_join(logits, target, first_token, own_tokens, all, tp.size(), loss,
                               with_gradient, scale, count);
  }

  /// Body and head up to the losses; with_gradient: also d_output and the head's gradient.
  double run(const MicroBatch& batch, const Tensor& row_table, bool with_gradient, float scale) {
    load(batch, row_table);
    const std::int64_t count = batch.positions();
    embed(!batch.row_of_position.empty(), row_table, count);
    transformer.forward(activations, CausalAttention(shape_of(batch), starts), positions, count);
    const Tensor output = tp.gather(backend, activations.output, full, count);
    for (std::int64_t begin = 0; begin < count; begin += tile) {
      const std::int64_t part = std::min(tile, count - begin);
      const Tensor x = output.rows(begin, part);
      backend.linear(x, head, {}, {}, logits, part);
      cross_entropy(begin, part, with_gradient, scale);
      if (!with_gradient) continue;
      backend.linear_backward_input(logits, head, d_output.rows(begin, part), false, part);
      backend.linear_backward_weight(logits, x, d_head, {}, part);
    }
    if (with_gradient) tp.reduce(d_output, d_output_own, count);
    return backend.sum(losses.rows(0, count));
  }
};

MainModel::MainModel(const ModelConfig& config, ParameterSet& parameters, Backend& backend,
                     const MainModelOptions& options) {
  validate_tensor_parallel(config.main, "model.main", options.tp.size(), "parallel.main.tp");
  state_ = std::make_unique<State>(config, parameters, backend, options);
}
MainModel::~MainModel() = default;

double MainModel::forward(const MicroBatch& batch, const Tensor& rows, std::span<float> losses) {
  const double total = state_->run(batch, rows, false, 0.0F);
  if (!losses.empty()) state_->backend.download(state_->losses, losses);
  return total;
}

double MainModel::forward_backward(const MicroBatch& batch, const Tensor& rows,
                                   const Tensor& row_gradients, float loss_scale,
                                   const std::function<void(std::int64_t)>& gradients_final) {
  State& s = *state_;
  if (!s.options.training) {
    throw std::logic_error("forward_backward of a model made without training");
  }
  const double total = s.run(batch, rows, true, loss_scale);
  const std::int64_t count = batch.positions();
  s.transformer.backward(s.activations, CausalAttention(s.shape_of(batch), s.starts), s.positions,
                         s.d_output_own, s.scratch, count, gradients_final);
  s.backend.embed_backward(s.embedding_input(!batch.row_of_position.empty()),
                           s.tp.gather(s.backend, s.scratch.d_stream, s.full, count),
                           s.d_token_embedding, s.d_position_embedding, row_gradients, count);
  if (gradients_final) gradients_final(s.parameters.offset(1));
  return total;
}

void MainModel::decode(std::span<const std::int32_t> tokens,
                       std::span<const std::int32_t> row_of_position, const Tensor& rows,
                       KeyValueCache& cache, std::span<float> logits) {
  State& s = *state_;
  if (s.tp.size() > 1) throw std::logic_error("decoding with tensor parallelism");
  const auto total = static_cast<std::int64_t>(tokens.size());
  if (total == 0 || cache.length_ + total > s.config.main.context) {
    throw std::out_of_range(fmt::format("decoding {} tokens after {}: the context is {}", total,
                                        cache.length_, s.config.main.context));
  }
  check_range(tokens, 0, s.config.vocabulary_size, "token id");
  check_range(row_of_position, -1, rows.empty() ? 0 : rows.dim(0), "f-gram row");
  for (std::int64_t begin = 0; begin < total; begin += s.options.max_positions) {
    const std::int64_t count = std::min(s.options.max_positions, total - begin);
    const auto first = static_cast<std::size_t>(begin), size = static_cast<std::size_t>(count);
    const auto past = static_cast<std::int32_t>(cache.length_);
    std::iota(s.host_positions.begin(), s.host_positions.begin() + count, past);
    s.backend.upload(tokens.subspan(first, size), s.tokens);
    s.backend.upload(std::span<const std::int32_t>(s.host_positions).first(size), s.positions);
    const bool has_rows = !row_of_position.empty();
    if (has_rows) s.backend.upload(row_of_position.subspan(first, size), s.rows);
    s.backend.embed(s.embedding_input(has_rows), s.token_embedding, s.position_embedding, rows,
                    s.activations.input(), count);
    s.transformer.forward(s.activations,
                          CachedAttention(s.config.main, cache.entries_, cache.length_, count),
                          s.positions, count);
    cache.length_ += count;
    if (begin + count == total) {
      s.backend.linear(s.activations.output.rows(count - 1, 1), s.head, {}, {}, s.logits, 1);
      s.backend.download(s.logits, logits);
    }
  }
}

Device MainModel::device() const { return state_->backend.device(); }

std::size_t MainModel::activation_bytes() const {
  const State& s = *state_;
  return s.activations.bytes + s.scratch.bytes + s.logits.bytes() + s.statistics.bytes() +
         s.full.bytes() + s.transformer.buffer_bytes() + s.d_output.bytes() +
         (s.tp.splits_rows() ? s.d_output_own.bytes() : 0);
}

}  // namespace scone
