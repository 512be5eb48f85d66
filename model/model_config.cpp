#include "model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "parallel/json_field.h"

namespace scone {
namespace {

template <class Enum>
using Names = std::initializer_list<std::pair<Enum, const char*>>;

template <class Enum>
std::string to_name(Enum value, Names<Enum> names) {
  for (const auto& [candidate, name] : names) {
    if (candidate == value) return name;
  }
  return "?";
}

template <class Enum>
Enum from_name(const JsonField& json, Names<Enum> names) {
  std::string expected;
  for (const auto& [candidate, name] : names) {
    if (json.text() == name) return candidate;
    expected += (expected.empty() ? "one of " : ", ") + std::string(name);
  }
  json.reject(expected);
}

const Names<NormKind> kNorms = {{NormKind::layernorm, "layernorm"}, {NormKind::rmsnorm, "rmsnorm"}};
const Names<PositionKind> kPositions = {{PositionKind::learned, "learned"},
                                        {PositionKind::rope, "rope"}};
const Names<ActivationKind> kActivations = {{ActivationKind::gelu, "gelu"},
                                            {ActivationKind::swiglu, "swiglu"}};
const Names<CombineKind> kCombines = {{CombineKind::replace, "replace"}, {CombineKind::add, "add"}};
const Names<FgramRecompute> kRecomputes = {{FgramRecompute::none, "none"},
                                           {FgramRecompute::chunk, "chunk"}};

nlohmann::json transformer_to_json(const TransformerConfig& config) {
  return {{"width", config.width},
          {"layers", config.layers},
          {"heads", config.heads},
          {"ffw", config.ffw},
          {"context", config.context},
          {"norm", to_name(config.norm, kNorms)},
          {"position", to_name(config.position, kPositions)},
          {"activation", to_name(config.activation, kActivations)},
          {"bias", config.bias}};
}

TransformerConfig read_transformer(const JsonField& json, std::int64_t fewest_layers) {
  TransformerConfig config;
  config.layers = json["layers"].integer(fewest_layers, kMostLayers);
  // A model of no layers may have no sizes.
  const std::int64_t least = config.layers > 0 ? 1 : 0;
  config.width = json["width"].integer(least, kMostWidth);
  config.heads = json["heads"].integer(least, std::max(config.width, least));
  config.ffw = json["ffw"].integer(least, kMostWidth);
  config.context = json["context"].integer(least, kMostContext);
  config.norm = from_name(json["norm"], kNorms);
  config.position = from_name(json["position"], kPositions);
  config.activation = from_name(json["activation"], kActivations);
  config.bias = json["bias"].boolean();
  if (config.layers > 0 && config.width % config.heads != 0)
    json["heads"].reject(fmt::format("a divisor of the width {}", config.width));
  return config;
}

}  // namespace

void to_json(nlohmann::json& json, const ModelConfig& config) {
  json = {{"vocabulary_size", config.vocabulary_size},
          {"main", transformer_to_json(config.main)},
          {"tie_embeddings", config.tie_embeddings},
          {"fgram", transformer_to_json(config.fgram)},
          {"combine", to_name(config.combine, kCombines)},
          {"fgram_recompute", to_name(config.fgram_recompute, kRecomputes)},
          {"fgram_chunk_nodes", config.fgram_chunk_nodes}};
}

ModelConfig read_model_config(const JsonField& json) {
  ModelConfig config;
  config.vocabulary_size = json["vocabulary_size"].integer(1, INT32_MAX);
  config.main = read_transformer(json["main"], 1);
  config.tie_embeddings = json["tie_embeddings"].boolean();
  config.fgram = read_transformer(json["fgram"], 0);
  config.combine = from_name(json["combine"], kCombines);
  config.fgram_recompute = from_name(json["fgram_recompute"], kRecomputes);
  config.fgram_chunk_nodes = json["fgram_chunk_nodes"].integer(1, INT64_MAX);
  return config;
}

double forward_flops_per_token(const TransformerConfig& config, double attended) {
  const auto width = static_cast<double>(config.width);
  const auto ffw = static_cast<double>(config.ffw);
  const double ffw_matrices = config.activation == ActivationKind::swiglu ? 3.0 : 2.0;
  const double matrices = 4.0 * width * width + ffw_matrices * width * ffw;
  const double attention = 2.0 * width * attended;  // scores and weighted values
  return 2.0 * static_cast<double>(config.layers) * (matrices + attention);
}

}  // namespace scone
