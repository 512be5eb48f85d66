#include "model/main_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "model/ops/ops.h"
#include "model/transformer.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// Of rows of the head: matrix units want aligned rows of logits, and whole tiles.
constexpr std::int64_t kHeadMultiple = 64;

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

/// Rows of one pass of decoding that belong to one sequence.
struct DecodePiece {
  const Tensor* entries;     // [layers, capacity, 2 width] of its cache
  std::int64_t past;         // tokens in the cache before
  std::int64_t begin, rows;  // in the pass
};

class CachedAttention final : public Attention {
 public:
  CachedAttention(const TransformerConfig& config, std::span<const DecodePiece> pieces)
      : config_(config), pieces_(pieces) {}
  void forward(Backend& backend, std::int64_t layer, const Tensor& qkv, const Tensor& out,
               const Tensor&) const override {
    for (const DecodePiece& piece : pieces_) {
      const Tensor own =
          piece.entries->rows(layer, 1).view({piece.entries->dim(1), 2 * config_.width});
      backend.cached_attention(qkv.rows(piece.begin, piece.rows), own, piece.past, config_.heads,
                               config_.width / config_.heads, out.rows(piece.begin, piece.rows),
                               piece.rows);
    }
  }
  void backward(Backend&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                const Tensor&) const override {
    throw std::logic_error("attention with a cache has no backward pass");
  }

 private:
  const TransformerConfig& config_;
  std::span<const DecodePiece> pieces_;
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

KeyValueCache::KeyValueCache(const TransformerConfig& config, Device device, DType dtype,
                             std::int64_t capacity)
    : capacity_(capacity > 0 ? std::min(capacity, config.context) : config.context),
      entries_(Tensor::zeros({config.layers, capacity_, 2 * config.width}, dtype, device)) {}

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
  std::vector<std::int32_t> host_positions, host_tokens, host_rows;

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
    tile = MainModel::head_tile(device, max_positions);
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
    host_rows.resize(static_cast<std::size_t>(max_positions));
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

  void check(std::span<const DecodeSequence> sequences, const Tensor& row_table) const {
    std::vector<const KeyValueCache*> caches;
    for (const DecodeSequence& sequence : sequences) {
      const KeyValueCache& cache = *sequence.cache;
      const auto count = std::ssize(sequence.tokens);
      if (count == 0 ||
          (!sequence.row_of_position.empty() && std::ssize(sequence.row_of_position) != count) ||
          (!sequence.logits.empty() && std::ssize(sequence.logits) != config.vocabulary_size)) {
        throw std::invalid_argument(fmt::format(
            "decoding {} tokens with {} row indices and {} logits; expected at least one token, an "
            "index a token or none, and {} logits or none",
            count, sequence.row_of_position.size(), sequence.logits.size(),
            config.vocabulary_size));
      }
      if (cache.length() + count > cache.capacity()) {
        throw std::out_of_range(fmt::format("decoding {} tokens after {}: the cache holds {}",
                                            count, cache.length(), cache.capacity()));
      }
      check_range(sequence.tokens, 0, config.vocabulary_size, "token id");
      check_range(sequence.row_of_position, -1, row_table.empty() ? 0 : row_table.dim(0),
                  "f-gram row");
      caches.push_back(&cache);
    }
    std::sort(caches.begin(), caches.end());
    if (std::adjacent_find(caches.begin(), caches.end()) != caches.end()) {
      throw std::invalid_argument("decoding two sequences with one cache");
    }
  }

  /// The first `count` host tokens, positions and rows through the model. wanted: rows of the pass
  /// in ascending order, and where the logits of each go.
  void decode_pass(std::span<const DecodePiece> pieces,
                   std::span<const std::pair<std::int64_t, std::span<float>>> wanted,
                   const Tensor& row_table, std::int64_t count) {
    const auto upload = [&](const std::vector<std::int32_t>& from, const Tensor& to) {
      backend.upload(std::span<const std::int32_t>(from).first(static_cast<std::size_t>(count)),
                     to);
    };
    upload(host_tokens, tokens);
    upload(host_positions, positions);
    const bool has_rows = !row_table.empty();
    if (has_rows) upload(host_rows, rows);
    backend.embed(embedding_input(has_rows), token_embedding, position_embedding, row_table,
                  activations.input(), count);
    transformer.forward(activations, CachedAttention(config.main, pieces), positions, count);
    // The rows whose logits are wanted, moved to the front: one product with the head for all.
    const Tensor& output = activations.output;
    const auto outputs = std::ssize(wanted);
    for (std::int64_t i = 0; i < outputs; ++i) {
      const std::int64_t from = wanted[static_cast<std::size_t>(i)].first;
      if (from != i) backend.copy(output.rows(from, 1), output.rows(i, 1));
    }
    for (std::int64_t begin = 0; begin < outputs; begin += tile) {
      const std::int64_t part = std::min(tile, outputs - begin);
      backend.linear(output.rows(begin, part), head, {}, {}, logits, part);
      for (std::int64_t i = 0; i < part; ++i)
        backend.download(logits.rows(i, 1), wanted[static_cast<std::size_t>(begin + i)].second);
    }
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

void MainModel::decode(std::span<const DecodeSequence> sequences, const Tensor& rows) {
  State& s = *state_;
  if (s.tp.size() > 1) throw std::logic_error("decoding with tensor parallelism");
  s.check(sequences, rows);
  const std::int64_t capacity = s.options.max_positions;
  std::vector<DecodePiece> pieces;
  std::vector<std::pair<std::int64_t, std::span<float>>> wanted;  // row of the pass, its logits
  std::int64_t count = 0;
  bool has_rows = false;
  const auto run = [&] {
    s.decode_pass(pieces, wanted, has_rows ? rows : Tensor{}, count);
    pieces.clear();
    wanted.clear();
    count = 0;
    has_rows = false;
  };
  for (const DecodeSequence& sequence : sequences) {
    const auto total = std::ssize(sequence.tokens);
    for (std::int64_t begin = 0; begin < total;) {
      const std::int64_t taken = std::min(capacity - count, total - begin);
      pieces.push_back({&sequence.cache->entries_, sequence.cache->length_, count, taken});
      for (std::int64_t i = 0; i < taken; ++i) {
        const auto from = static_cast<std::size_t>(begin + i);
        const auto to = static_cast<std::size_t>(count + i);
        s.host_tokens[to] = sequence.tokens[from];
        s.host_positions[to] = static_cast<std::int32_t>(sequence.cache->length_ + i);
        s.host_rows[to] = sequence.row_of_position.empty() ? -1 : sequence.row_of_position[from];
        has_rows = has_rows || s.host_rows[to] >= 0;
      }
      begin += taken;
      count += taken;
      sequence.cache->length_ += taken;
      if (begin == total && !sequence.logits.empty())
        wanted.emplace_back(count - 1, sequence.logits);
      if (count == capacity) run();
    }
  }
  if (count > 0) run();
}

Device MainModel::device() const { return state_->backend.device(); }

std::size_t MainModel::activation_bytes() const {
  const State& s = *state_;
  return s.activations.bytes + s.scratch.bytes + s.logits.bytes() + s.statistics.bytes() +
         s.full.bytes() + s.transformer.buffer_bytes() + s.d_output.bytes() +
         (s.tp.splits_rows() ? s.d_output_own.bytes() : 0);
}

std::int64_t MainModel::head_tile(Device device, std::int64_t positions) {
  return std::min<std::int64_t>(device == Device::cpu ? 512 : 8192, positions);
}

std::size_t MainModel::training_bytes(const ModelConfig& config, std::int64_t max_positions,
                                      const TensorParallelSize& tp, Recompute recompute,
                                      DType dtype, Device device) {
  const TransformerShape shape(config.main, tp, max_positions, dtype);
  const auto bytes = [](std::int64_t rows, std::int64_t columns, DType type) {
    return static_cast<std::size_t>(rows * columns) * size_of(type);
  };
  const std::int64_t tile = head_tile(device, max_positions);
  const std::int64_t own_tokens = (config.vocabulary_size + tp.ranks - 1) / tp.ranks;
  const std::int64_t head_rows = (own_tokens + kHeadMultiple - 1) / kHeadMultiple * kHeadMultiple;
  const std::size_t of_all = bytes(max_positions, shape.width, dtype);
  std::size_t sum = TransformerActivations::bytes_of(config.main, shape, true, recompute) +
                    TransformerScratch::bytes_of(shape, tp.splits_rows) +
                    bytes(tile, head_rows, dtype) + of_all;  // logits, d_output
  if (tp.ranks > 1) sum += bytes(tp.ranks * tile, 3, DType::fp32);
  if (tp.splits_rows)  // full, the transformer's own, d_output_own
    sum += 2 * of_all + bytes(shape.own_rows, shape.width, dtype);
  return sum;
}

}  // namespace scone
