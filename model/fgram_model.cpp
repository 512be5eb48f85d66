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

/// Nodes [begin, end) of the batch, with `repeats` ancestors of node begin in front.
struct Chunk {
  std::int64_t begin, end, repeats;
  std::int64_t size() const { return repeats + end - begin; }
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
    specs.push_back({"fgram.position_embedding",
                     {fgram.context, fgram.width},
                     -1,
                     Grid::fgram,
                     false,
                     0.0,
                     0.02});
  }
  append_transformer_specs(fgram, "fgram.", Grid::fgram, specs);
  return specs;
}

struct FgramModel::State {
  ModelConfig config;
  Backend& backend;
  bool training;
  Transformer transformer;
  std::vector<TransformerActivations> activations;  // one a chunk, or one in all
  TransformerScratch scratch;
  Tensor token_embedding, d_token_embedding, position_embedding, d_position_embedding;
  Tensor tokens, parents, depths;                                    // int32 [chunk nodes]
  std::vector<std::int32_t> host_tokens, host_parents, host_depths;  // likewise
  std::vector<std::int32_t> local;  // batch node -> place in the chunk
  std::vector<Chunk> chunks;
  Tensor d_output;  // [chunk nodes, width]
  std::int64_t computed = 0;

  State(const ModelConfig& model, ParameterSet& parameters, ParameterSet& main_parameters,
        Backend& device_backend, bool train)
      : config(model),
        backend(device_backend),
        training(train),
        transformer(model.fgram, "fgram.", parameters, device_backend) {
    const Device device = backend.device();
    const std::int64_t capacity = config.fgram_chunk_nodes;
    const std::size_t token_index = main_parameters.find("main.token_embedding");
    token_embedding = main_parameters.value(token_index);
    d_token_embedding = main_parameters.gradient(token_index);
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
    if (training) {
      scratch = TransformerScratch(config.fgram, capacity, device);
      d_output = Tensor::zeros({capacity, config.fgram.width}, DType::fp32, device);
    }
  }

  bool keeps_all() const { return training && config.fgram_recompute == FgramRecompute::none; }

  TransformerActivations& activations_of(std::size_t chunk) {
    const std::size_t index = keeps_all() ? chunk : 0;
    while (activations.size() <= index) {
      activations.emplace_back(config.fgram, config.fgram_chunk_nodes, training, backend.device());
    }
    return activations[index];
  }

  void plan_chunks(const TrieNodes& nodes) {
    chunks.clear();
    computed = 0;
    for (std::int64_t i = 0; i < nodes.size(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::int32_t parent = nodes.parent[at], depth = nodes.depth[at];
      const bool depth_fits =
          parent < 0 ? depth == 0
                     : parent < i && depth == nodes.depth[static_cast<std::size_t>(parent)] + 1;
      if (!depth_fits || depth >= config.fgram.context || nodes.token[at] < 0 ||
          nodes.token[at] >= config.vocabulary_size) {
        throw std::out_of_range(fmt::format(
            "f-gram trie: node {} of token {}, parent {}, depth {}; vocabulary {}, longest f-gram "
            "{}",
            i, nodes.token[at], parent, depth, config.vocabulary_size, config.fgram.context));
      }
    }
    for (std::int64_t begin = 0; begin < nodes.size();) {
      const std::int64_t repeats = nodes.depth[static_cast<std::size_t>(begin)];
      const std::int64_t end = std::min(nodes.size(), begin + config.fgram_chunk_nodes - repeats);
      chunks.push_back({begin, end, repeats});
      computed += chunks.back().size();
      begin = end;
    }
    local.resize(std::max(local.size(), nodes.token.size()));
  }

  /// The chunk's tokens, parents (by place in the chunk) and depths to the device.
  void load(const TrieNodes& nodes, const Chunk& chunk) {
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

  TrieShape shape_of(const Chunk& chunk) const {
    return {chunk.size(), config.fgram.heads, config.fgram.width / config.fgram.heads};
  }
  EmbeddingInput embedding_input() const { return {tokens, depths, {}, CombineKind::replace}; }

  void forward_chunk(const TrieNodes& nodes, std::size_t index) {
    const Chunk& chunk = chunks[index];
    TransformerActivations& own = activations_of(index);
    load(nodes, chunk);
    backend.embed(embedding_input(), token_embedding, position_embedding, {}, own.input(),
                  chunk.size());
    transformer.forward(own, TrieAttention(shape_of(chunk), parents), depths, chunk.size());
  }
};

FgramModel::FgramModel(const ModelConfig& config, ParameterSet& parameters,
                       ParameterSet& main_parameters, Backend& backend, bool training)
    : state_(std::make_unique<State>(config, parameters, main_parameters, backend, training)) {}
FgramModel::~FgramModel() = default;

void FgramModel::forward(const TrieNodes& nodes, const Tensor& rows) {
  State& s = *state_;
  s.plan_chunks(nodes);
  for (std::size_t i = 0; i < s.chunks.size(); ++i) {
    const Chunk& chunk = s.chunks[i];
    s.forward_chunk(nodes, i);
    const std::int64_t own = chunk.end - chunk.begin;
    s.backend.copy(s.activations_of(i).output.rows(chunk.repeats, own),
                   rows.rows(chunk.begin, own));
  }
}

void FgramModel::backward(const TrieNodes& nodes, const Tensor& row_gradients) {
  State& s = *state_;
  if (!s.training) throw std::logic_error("backward of an f-gram model made without training");
  if (nodes.size() != (s.chunks.empty() ? 0 : s.chunks.back().end)) {
    throw std::logic_error("backward of an f-gram model must follow forward of the same nodes");
  }
  for (std::size_t i = s.chunks.size(); i-- > 0;) {
    const Chunk& chunk = s.chunks[i];
    const std::int64_t own = chunk.end - chunk.begin;
    if (s.keeps_all()) {
      s.load(nodes, chunk);
    } else if (i + 1 < s.chunks.size()) {
      s.forward_chunk(nodes, i);
    }
    s.backend.zero(s.d_output.rows(0, chunk.repeats));
    s.backend.copy(row_gradients.rows(chunk.begin, own), s.d_output.rows(chunk.repeats, own));
    s.transformer.backward(s.activations_of(i), TrieAttention(s.shape_of(chunk), s.parents),
                           s.depths, s.d_output, s.scratch, chunk.size());
    s.backend.embed_backward(s.embedding_input(), s.scratch.d_stream, s.d_token_embedding,
                             s.d_position_embedding, {}, chunk.size());
  }
}

std::int64_t FgramModel::nodes_computed() const { return state_->computed; }

std::size_t FgramModel::activation_bytes() const {
  std::size_t bytes = state_->scratch.bytes + state_->d_output.bytes();
  for (const TransformerActivations& own : state_->activations) bytes += own.bytes;
  return bytes;
}

}  // namespace scone
