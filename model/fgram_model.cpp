#include "model/fgram_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "model/ops/ops.h"
#include "model/transformer.h"
#include "parallel/error.h"

namespace scone {
namespace {

class TrieAttention final : public Attention {
 public:
  TrieAttention(const TrieShape& shape, const Tensor& parent) : shape_(shape), parent_(parent) {}
  void forward(Backend& backend, std::int64_t, const Tensor& qkv, const Tensor& out,
               const Tensor& log_sum_exp) const override {
    backend.trie_attention(shape_, qkv, parent_, out, log_sum_exp);
  }
  void backward(Backend& backend, const Tensor& qkv, const Tensor& out, const Tensor& log_sum_exp,
                const Tensor& d_out, const Tensor& d_qkv) const override {
    backend.trie_attention_backward(shape_, qkv, parent_, out, log_sum_exp, d_out, d_qkv);
  }

 private:
  TrieShape shape_;
  const Tensor& parent_;
};

}  // namespace

std::vector<ParameterSpec> fgram_parameter_specs(const ModelConfig& config) {
  const TransformerConfig& fgram = config.fgram;
  if (fgram.layers == 0) return {};
  validate(fgram, "model.fgram");
  const auto refuse = [](const char* key, std::int64_t found, const std::string& expected) {
    throw InputError(fmt::format("model.fgram.{} is {}; expected {}", key, found, expected));
  };
  if (fgram.width != config.main.width) {
    refuse("width", fgram.width, fmt::format("the main model's {}", config.main.width));
  }
  if (fgram.context > kMaxTrieDepth) {
    refuse("context", fgram.context, fmt::format("at most {}", kMaxTrieDepth));
  }
  if (config.fgram_chunk_nodes < fgram.context) {
    refuse("chunk_nodes", config.fgram_chunk_nodes,
           fmt::format("at least the longest f-gram, {}", fgram.context));
  }
  std::vector<ParameterSpec> specs;
  if (fgram.position == PositionKind::learned) {
    specs.push_back({.name = "fgram.position_embedding",
                     .shape = {fgram.context, fgram.width},
                     .grid = Grid::fgram,
                     .weight_decay = false,
                     .init_std = 0.02,
                     .sums_rows = true});
  }
  append_transformer_specs(fgram, "fgram.", Grid::fgram, specs);
  return specs;
}

TokenTable whole_token_table(const ParameterSet& main_parameters) {
  const std::size_t index = main_parameters.find("main.token_embedding");
  return {main_parameters.value(index), main_parameters.gradient(index)};
}

std::vector<TrieChunk> trie_chunks(std::span<const std::int32_t> depth, std::int64_t most_nodes) {
  const auto nodes = static_cast<std::int64_t>(depth.size());
  std::vector<TrieChunk> chunks;
  for (std::int64_t begin = 0; begin < nodes; begin = chunks.back().end) {
    const std::int64_t repeats = depth[static_cast<std::size_t>(begin)];
    chunks.push_back({begin, std::min(nodes, begin + most_nodes - repeats), repeats});
  }
  return chunks;
}

struct FgramModel::State {
  ModelConfig config;
  Backend& backend;
  bool training;
  TensorParallel tp;
  Transformer transformer;
  std::vector<TransformerActivations> activations;  // one a chunk, or one in all
  TransformerScratch scratch;
  TokenTable table;
  Tensor position_embedding, d_position_embedding;
  Tensor tokens, parents, depths;                                    // int32 [chunk nodes]
  std::vector<std::int32_t> host_tokens, host_parents, host_depths;  // likewise
  std::vector<std::int32_t> local;  // batch node -> place in the chunk
  std::vector<TrieChunk> chunks;
  Tensor full;      // [chunk nodes, width] where rows are split
  Tensor d_output;  // [chunk nodes, width]
  std::int64_t computed = 0;

  State(const ModelConfig& model, ParameterSet& parameters, const TokenTable& token_table,
        Backend& device_backend, bool train, const TensorParallel& tensor_parallel)
      : config(model),
        backend(device_backend),
        training(train),
        tp(tensor_parallel),
        transformer(model.fgram, "fgram.", parameters, device_backend, tp, model.fgram_chunk_nodes),
        table(token_table) {
    const Device device = backend.device();
    const std::int64_t capacity = config.fgram_chunk_nodes;
    if (config.fgram.position == PositionKind::learned) {
      const std::size_t index = parameters.find("fgram.position_embedding");
      position_embedding = parameters.value(index);
      d_position_embedding = parameters.gradient(index);
    }
    for (Tensor* integers : {&tokens, &parents, &depths}) {
      *integers = Tensor::zeros({capacity}, DType::int32, device);
    }
    for (auto* host : {&host_tokens, &host_parents, &host_depths}) {
      host->resize(static_cast<std::size_t>(capacity));
    }
    activations_of(0);
    if (tp.splits_rows())
      full = Tensor::zeros({capacity, config.fgram.width}, parameters.dtype(), device);
    if (training) {
      scratch = TransformerScratch(transformer.shape(), tp.splits_rows(), device);
      d_output = Tensor::zeros({capacity, config.fgram.width}, parameters.dtype(), device);
    }
  }

  bool keeps_all() const { return training && config.fgram_recompute == FgramRecompute::none; }

  TransformerActivations& activations_of(std::size_t chunk) {
    const std::size_t index = keeps_all() ? chunk : 0;
    while (activations.size() <= index) {
      activations.emplace_back(config.fgram, transformer.shape(), training, Recompute::none,
                               backend.device());
    }
    return activations[index];
  }

  void plan_chunks(const TrieNodes& nodes) {
    computed = 0;
    for (std::int64_t i = 0; i < nodes.size(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::int32_t parent = nodes.parent[at], depth = nodes.depth[at];
      const bool depth_fits =
          parent < 0 ? depth == 0
                     : parent < i && depth == nodes.depth[static_cast<std::size_t>(parent)] + 1;
      if (!depth_fits || depth >= config.fgram.context || nodes.token[at] < 0 ||
          nodes.token[at] >= table.values.dim(0)) {
        throw std::out_of_range(fmt::format(
            "f-gram trie: node {} of token row {}, parent {}, depth {}; token rows {}, longest "
            "f-gram {}",
            i, nodes.token[at], parent, depth, table.values.dim(0), config.fgram.context));
      }
    }
    chunks = trie_chunks(nodes.depth, config.fgram_chunk_nodes);
    for (const TrieChunk& chunk : chunks) computed += chunk.size();
    local.resize(std::max(local.size(), nodes.token.size()));
  }

  /// The chunk's tokens, parents (by place in the chunk) and depths to the device.
  void load(const TrieNodes& nodes, const TrieChunk& chunk) {
    const auto put = [&](std::int64_t node, std::int64_t place) {
      const auto from = static_cast<std::size_t>(node), to = static_cast<std::size_t>(place);
      const std::int32_t parent = nodes.parent[from];
      local[from] = static_cast<std::int32_t>(place);
      host_tokens[to] = nodes.token[from];
      host_depths[to] = nodes.depth[from];
      host_parents[to] = parent < 0 ? -1 : local[static_cast<std::size_t>(parent)];
    };
    std::int64_t path[kMaxTrieDepth];
    std::int64_t ancestor = chunk.begin;
    for (std::int64_t place = chunk.repeats; place-- > 0;) {
      ancestor = nodes.parent[static_cast<std::size_t>(ancestor)];
      path[place] = ancestor;
    }
    for (std::int64_t place = 0; place < chunk.repeats; ++place) put(path[place], place);
    for (std::int64_t node = chunk.begin; node < chunk.end; ++node) {
      put(node, chunk.repeats + node - chunk.begin);
    }
    const auto size = static_cast<std::size_t>(chunk.size());
    backend.upload(std::span<const std::int32_t>(host_tokens).first(size), tokens);
    backend.upload(std::span<const std::int32_t>(host_parents).first(size), parents);
    backend.upload(std::span<const std::int32_t>(host_depths).first(size), depths);
  }

  TrieShape shape_of(const TrieChunk& chunk) const {
    return {chunk.size(), transformer.shape().own_heads, config.fgram.width / config.fgram.heads};
  }

  void forward_chunk(const TrieNodes& nodes, std::size_t index) {
    const TrieChunk& chunk = chunks[index];
    TransformerActivations& own = activations_of(index);
    load(nodes, chunk);
    // Every rank of the group has the whole table, so each embeds the nodes that it holds.
    const Slice held = tp.own_rows(chunk.size());
    backend.embed({tokens.rows(held.begin, held.count),
                   depths.rows(held.begin, held.count),
                   {},
                   CombineKind::replace},
                  table.values, position_embedding, {}, own.input(), held.count);
    transformer.forward(own, TrieAttention(shape_of(chunk), parents), depths, chunk.size());
  }

  /// Gradients of the embeddings from those of the chunk's input.
  void backward_embedding(const TrieChunk& chunk) {
    const Slice held = tp.own_rows(chunk.size());
    if (tp.size() > 1 && !tp.splits_rows()) {
      // All ranks hold all nodes: each adds the token gradients of its share of them.
      const Slice share = slice_of(chunk.size(), tp.part());
      const auto begin = host_tokens.begin(), end = begin + chunk.size();
      std::fill(begin, begin + share.begin, -1);
      std::fill(begin + share.begin + share.count, end, -1);
      backend.upload(std::span<const std::int32_t>(begin, end), tokens);
    }
    backend.embed_backward({tokens.rows(held.begin, held.count),
                            depths.rows(held.begin, held.count),
                            {},
                            CombineKind::replace},
                           scratch.d_stream, table.gradients, d_position_embedding, {}, held.count);
  }
};

FgramModel::FgramModel(const ModelConfig& config, ParameterSet& parameters,
                       const TokenTable& tokens, Backend& backend, bool training,
                       const TensorParallel& tp) {
  validate_tensor_parallel(config.fgram, "model.fgram", tp.size(), "parallel.fgram.tp");
  state_ = std::make_unique<State>(config, parameters, tokens, backend, training, tp);
}
FgramModel::~FgramModel() = default;

void FgramModel::use_token_table(const TokenTable& tokens) { state_->table = tokens; }

void FgramModel::forward(const TrieNodes& nodes, const Tensor& rows) {
  State& s = *state_;
  s.plan_chunks(nodes);
  for (std::size_t i = 0; i < s.chunks.size(); ++i) {
    const TrieChunk& chunk = s.chunks[i];
    s.forward_chunk(nodes, i);
    const std::int64_t own = chunk.end - chunk.begin;
    const Tensor output = s.tp.gather(s.backend, s.activations_of(i).output, s.full, chunk.size());
    s.backend.copy(output.rows(chunk.repeats, own), rows.rows(chunk.begin, own));
  }
}

void FgramModel::backward(const TrieNodes& nodes, const Tensor& row_gradients,
                          const std::function<void(std::int64_t)>& gradients_final) {
  State& s = *state_;
  if (!s.training) throw std::logic_error("backward of an f-gram model made without training");
  if (nodes.size() != (s.chunks.empty() ? 0 : s.chunks.back().end)) {
    throw std::logic_error("backward of an f-gram model must follow forward of the same nodes");
  }
  // Groups that have nodes reduce as they go, and wait for this one's part.
  if (s.chunks.empty()) s.transformer.no_backward(gradients_final);
  for (std::size_t i = s.chunks.size(); i-- > 0;) {
    const TrieChunk& chunk = s.chunks[i];
    const std::int64_t own = chunk.end - chunk.begin;
    if (s.keeps_all()) {
      s.load(nodes, chunk);
    } else if (i + 1 < s.chunks.size()) {
      s.forward_chunk(nodes, i);
    }
    s.backend.zero(s.d_output.rows(0, chunk.repeats));
    s.backend.copy(row_gradients.rows(chunk.begin, own), s.d_output.rows(chunk.repeats, own));
    const Slice held = s.tp.own_rows(chunk.size());
    s.transformer.backward(s.activations_of(i), TrieAttention(s.shape_of(chunk), s.parents),
                           s.depths, s.d_output.rows(held.begin, held.count), s.scratch,
                           chunk.size(),
                           i == 0 ? gradients_final : std::function<void(std::int64_t)>{});
    s.backward_embedding(chunk);
  }
}

std::int64_t FgramModel::nodes_computed() const { return state_->computed; }

std::size_t FgramModel::activation_bytes() const {
  std::size_t bytes = state_->scratch.bytes + state_->d_output.bytes() + state_->full.bytes() +
                      state_->transformer.buffer_bytes();
  for (const TransformerActivations& own : state_->activations) bytes += own.bytes;
  return bytes;
}

std::size_t FgramModel::training_bytes(const ModelConfig& config, const TensorParallelSize& tp,
                                       DType dtype, std::int64_t chunks) {
  const TransformerShape shape(config.fgram, tp, config.fgram_chunk_nodes, dtype);
  const std::size_t of_all = static_cast<std::size_t>(shape.rows * shape.width) * size_of(dtype);
  const bool keeps_all = config.fgram_recompute == FgramRecompute::none;
  const auto kept = static_cast<std::size_t>(keeps_all ? std::max<std::int64_t>(1, chunks) : 1);
  return kept * TransformerActivations::bytes_of(config.fgram, shape, true, Recompute::none) +
         TransformerScratch::bytes_of(shape, tp.splits_rows) +
         of_all * (tp.splits_rows ? 3 : 1);  // d_output; full, the transformer's own
}

}  // namespace scone
