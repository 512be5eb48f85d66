#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

namespace scone {

class JsonField;

enum class NormKind { layernorm, rmsnorm };
enum class PositionKind { learned, rope };
enum class ActivationKind { gelu, swiglu };
enum class CombineKind { replace, add };
enum class FgramRecompute { none, chunk };
/// What the main model's backward pass computes again instead of keeping: nothing; norm, q, k, v
/// and attention of each block; or each block from its input.
enum class Recompute { none, attention, block };

/// Largest sizes that configurations may give: beyond any model, and small enough that no product
/// of them overflows.
constexpr std::int64_t kMostWidth = std::int64_t{1} << 20;  // also of heads and ffw
constexpr std::int64_t kMostLayers = 10000;
constexpr std::int64_t kMostContext = std::int64_t{1} << 24;

/// Shape of one pre-norm decoder transformer without token embedding.
struct TransformerConfig {
  std::int64_t width = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t ffw = 0;      // inner width of the feed-forward layer
  std::int64_t context = 0;  // most positions: sequence length (main), K (f-gram model)
  NormKind norm = NormKind::layernorm;
  PositionKind position = PositionKind::learned;
  ActivationKind activation = ActivationKind::gelu;
  bool bias = true;  // biases of linear layers (and of layernorm)
};

/// Both models of a SCONE run. fgram.layers == 0: no f-gram model, the plain baseline.
struct ModelConfig {
  std::int64_t vocabulary_size = 0;
  TransformerConfig main;
  bool tie_embeddings = true;
  TransformerConfig fgram;  // its position kind applies to positions 0..K-1; width equals main's
  CombineKind combine = CombineKind::replace;
  FgramRecompute fgram_recompute = FgramRecompute::chunk;
  std::int64_t fgram_chunk_nodes = 8192;  // nodes of one chunk, repeated ancestors included
};

void to_json(nlohmann::json& json, const ModelConfig& config);
/// Reads what to_json made. Throws InputError, naming the key, where one is missing, ill-typed or
/// beyond any model.
ModelConfig read_model_config(const JsonField& json);

/// Floating-point operations (a multiply-add is 2) of one forward pass, without token embedding and
/// head: attended: mean number of keys a query attends to.
double forward_flops_per_token(const TransformerConfig& config, double attended);

}  // namespace scone
