#include "model/model_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "parallel/error.h"

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
Enum from_name(const nlohmann::json& json, const char* key, Names<Enum> names) {
  const auto found = json.at(key).get<std::string>();
  std::string expected;
  for (const auto& [candidate, name] : names) {
    if (found == name) return candidate;
    expected += (expected.empty() ? "" : ", ") + std::string(name);
  }
  throw InputError(fmt::format("model configuration: key \"{}\" is \"{}\"; expected one of {}", key,
                               found, expected));
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

TransformerConfig transformer_from_json(const nlohmann::json& json) {
  TransformerConfig config;
  json.at("width").get_to(config.width);
  json.at("layers").get_to(config.layers);
  json.at("heads").get_to(config.heads);
  json.at("ffw").get_to(config.ffw);
  json.at("context").get_to(config.context);
  config.norm = from_name(json, "norm", kNorms);
  config.position = from_name(json, "position", kPositions);
  config.activation = from_name(json, "activation", kActivations);
  json.at("bias").get_to(config.bias);
  return config;
}

/// Sizes that a model can be made of; `name` is the section's. Throws InputError.
void check_sizes(const TransformerConfig& config, const std::string& name) {
  const auto check = [&](const char* key, std::int64_t value, std::int64_t most) {
    if (value < 1 || value > most) {
      throw InputError(fmt::format("model configuration: {}.{}: expected 1..{}, found {}", name,
                                   key, most, value));
    }
  };
  check("width", config.width, kMostWidth);
  check("layers", config.layers, kMostLayers);
  check("heads", config.heads, config.width);
  check("ffw", config.ffw, kMostWidth);
  check("context", config.context, kMostContext);
  if (config.width % config.heads != 0) {
    throw InputError(fmt::format("model configuration: {}.heads: {} do not divide the width {}",
                                 name, config.heads, config.width));
  }
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

void from_json(const nlohmann::json& json, ModelConfig& config) {
  json.at("vocabulary_size").get_to(config.vocabulary_size);
  config.main = transformer_from_json(json.at("main"));
  json.at("tie_embeddings").get_to(config.tie_embeddings);
  config.fgram = transformer_from_json(json.at("fgram"));
  config.combine = from_name(json, "combine", kCombines);
  config.fgram_recompute = from_name(json, "fgram_recompute", kRecomputes);
  json.at("fgram_chunk_nodes").get_to(config.fgram_chunk_nodes);
  if (config.vocabulary_size < 1 || config.vocabulary_size > INT32_MAX) {
    throw InputError(fmt::format("model configuration: vocabulary_size: expected 1..{}, found {}",
                                 INT32_MAX, config.vocabulary_size));
  }
  check_sizes(config.main, "main");
  if (config.fgram.layers != 0) check_sizes(config.fgram, "fgram");
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
