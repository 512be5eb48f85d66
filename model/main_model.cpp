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

constexpr std::int64_t kHeadTile = 512;  // positions whose logits exist at a time

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
  specs.push_back({"main.token_embedding", table, -1, Grid::main, true, 0.0, 0.02});
  if (config.main.position == PositionKind::learned) {
    specs.push_back({"main.position_embedding",
                     {config.main.context, config.main.width},
                     -1,
                     Grid::main,
                     false,
                     0.0,
                     0.02});
  }
  append_transformer_specs(config.main, "main.", Grid::main, specs);
  if (!config.tie_embeddings)
    specs.push_back({"main.head", table, -1, Grid::main, true, 0.0, 0.02});
  return specs;
}

KeyValueCache::KeyValueCache(const TransformerConfig& config, Device device)
    : entries_(
          Tensor::zeros({config.layers, config.context, 2 * config.width}, DType::fp32, device)) {}

struct MainModel::State {
  ModelConfig config;
  ParameterSet& parameters;
  Backend& backend;
  std::int64_t max_positions;
  bool training;
  Transformer transformer;
  TransformerActivations activations;
  TransformerScratch scratch;
  Tensor token_embedding, d_token_embedding, position_embedding, d_position_embedding;
  Tensor head, d_head;
  Tensor tokens, positions, rows, targets, starts;  // int32 [max_positions]
  Tensor losses;                                    // [max_positions]
  Tensor logits;                                    // [kHeadTile, vocabulary]
  Tensor d_output;                                  // [max_positions, width]
  std::vector<std::int32_t> host_positions;

  State(const ModelConfig& model, ParameterSet& set, Backend& device_backend,
        std::int64_t positions_capacity, bool train)
      : config(model),
        parameters(set),
        backend(device_backend),
        max_positions(positions_capacity),
        training(train),
        transformer(model.main, "main.", set, device_backend),
        activations(model.main, positions_capacity, train, device_backend.device()) {
    const Device device = backend.device();
    const auto get = [&](const std::string& name, Tensor& value, Tensor& gradient) {
      const std::size_t index = parameters.find(name);
      value = parameters.value(index);
      gradient = parameters.gradient(index);
    };
    get("main.token_embedding", token_embedding, d_token_embedding);
    if (config.main.position == PositionKind::learned) {
      get("main.position_embedding", position_embedding, d_position_embedding);
    }
    get(config.tie_embeddings ? "main.token_embedding" : "main.head", head, d_head);
    for (Tensor* integers : {&tokens, &positions, &rows, &targets, &starts}) {
      *integers = Tensor::zeros({max_positions}, DType::int32, device);
    }
    losses = Tensor::zeros({max_positions}, DType::fp32, device);
    logits = Tensor::zeros({std::min(kHeadTile, max_positions), config.vocabulary_size},
                           DType::fp32, device);
    if (training) {
      scratch = TransformerScratch(config.main, max_positions, device);
      d_output = Tensor::zeros({max_positions, config.main.width}, DType::fp32, device);
    }
    host_positions.resize(static_cast<std::size_t>(max_positions));
  }

  EmbeddingInput embedding_input(bool has_rows) const {
    return {tokens, positions, has_rows ? rows : Tensor{}, config.combine};
  }

  void load(const MicroBatch& batch, const Tensor& row_table) {
    const std::int64_t count = batch.positions();
    if (batch.length > config.main.context || count > max_positions) {
      throw std::out_of_range(fmt::format(
          "microbatch of {} x {} positions; the model takes sequences of {} and {} positions",
          batch.sequences, batch.length, config.main.context, max_positions));
    }
    const std::int64_t table_rows = row_table.empty() ? 0 : row_table.dim(0);
    check_range(batch.tokens, 0, config.vocabulary_size, "token id");
    check_range(batch.targets, -1, config.vocabulary_size, "target");
    check_range(batch.row_of_position, -1, table_rows, "f-gram row");
    for (std::int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(i);
      host_positions[at] = static_cast<std::int32_t>(i % batch.length);
      if (batch.attention_start[at] < 0 || batch.attention_start[at] > host_positions[at]) {
        throw std::out_of_range(fmt::format("attention start {} of position {}",
                                            batch.attention_start[at], host_positions[at]));
      }
    }
    backend.upload(batch.tokens, tokens);
    backend.upload(batch.targets, targets);
    backend.upload(batch.attention_start, starts);
    backend.upload(batch.row_of_position, rows);
    backend.upload(std::span(host_positions).first(static_cast<std::size_t>(count)), positions);
  }

  CausalShape shape_of(const MicroBatch& batch) const {
    return {batch.sequences, batch.length, config.main.heads,
            config.main.width / config.main.heads};
  }

  /// Body and head up to the losses; with_gradient: also d_output and the head's gradient.
  double run(const MicroBatch& batch, const Tensor& row_table, bool with_gradient, float scale) {
    load(batch, row_table);
    const std::int64_t count = batch.positions();
    backend.embed(embedding_input(!batch.row_of_position.empty()), token_embedding,
                  position_embedding, row_table, activations.input(), count);
    transformer.forward(activations, CausalAttention(shape_of(batch), starts), positions, count);
    for (std::int64_t begin = 0; begin < count; begin += kHeadTile) {
      const std::int64_t tile = std::min(kHeadTile, count - begin);
      const Tensor x = activations.output.rows(begin, tile);
      backend.linear(x, head, {}, {}, logits, tile);
      backend.cross_entropy(logits, targets.rows(begin, tile), losses.rows(begin, tile),
                            with_gradient, scale, tile);
      if (!with_gradient) continue;
      backend.linear_backward_input(logits, head, d_output.rows(begin, tile), false, tile);
      backend.linear_backward_weight(logits, x, d_head, {}, tile);
    }
    return backend.sum(losses.rows(0, count));
  }
};

MainModel::MainModel(const ModelConfig& config, ParameterSet& parameters, Backend& backend,
                     std::int64_t max_positions, bool training)
    : state_(std::make_unique<State>(config, parameters, backend, max_positions, training)) {}
MainModel::~MainModel() = default;

double MainModel::forward(const MicroBatch& batch, const Tensor& rows, std::span<float> losses) {
  const double total = state_->run(batch, rows, false, 0.0F);
  if (!losses.empty()) state_->backend.download(state_->losses, losses);
  return total;
}

double MainModel::forward_backward(const MicroBatch& batch, const Tensor& rows,
                                   const Tensor& row_gradients, float loss_scale) {
  State& s = *state_;
  if (!s.training) throw std::logic_error("forward_backward of a model made without training");
  const double total = s.run(batch, rows, true, loss_scale);
  const std::int64_t count = batch.positions();
  s.transformer.backward(s.activations, CausalAttention(s.shape_of(batch), s.starts), s.positions,
                         s.d_output, s.scratch, count);
  s.backend.embed_backward(s.embedding_input(!batch.row_of_position.empty()), s.scratch.d_stream,
                           s.d_token_embedding, s.d_position_embedding, row_gradients, count);
  return total;
}

void MainModel::decode(std::span<const std::int32_t> tokens,
                       std::span<const std::int32_t> row_of_position, const Tensor& rows,
                       KeyValueCache& cache, std::span<float> logits) {
  State& s = *state_;
  const auto total = static_cast<std::int64_t>(tokens.size());
  if (total == 0 || cache.length_ + total > s.config.main.context) {
    throw std::out_of_range(fmt::format("decoding {} tokens after {}: the context is {}", total,
                                        cache.length_, s.config.main.context));
  }
  check_range(tokens, 0, s.config.vocabulary_size, "token id");
  check_range(row_of_position, -1, rows.empty() ? 0 : rows.dim(0), "f-gram row");
  for (std::int64_t begin = 0; begin < total; begin += s.max_positions) {
    const std::int64_t count = std::min(s.max_positions, total - begin);
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

std::size_t MainModel::activation_bytes() const {
  const State& s = *state_;
  return s.activations.bytes + s.scratch.bytes + s.logits.bytes() + s.d_output.bytes();
}

}  // namespace scone
