#include "checkpoint/export_names.h"

#include <map>
#include <stdexcept>

namespace scone {
namespace {

using Names = std::map<std::string, std::vector<std::string>>;

const Names kWhole = {{"token_embedding", {"model.embed_tokens.weight"}},
                      {"position_embedding", {"model.embed_positions.weight"}},
                      {"final_norm.gain", {"model.norm.weight"}},
                      {"final_norm.bias", {"model.norm.bias"}},
                      {"head", {"lm_head.weight"}}};

// Of one block, behind "blocks.N." and "model.layers.N.", before ".weight" or ".bias" (a norm's
// gain is its weight).
const Names kOfBlock = {
    {"attention_norm", {"input_layernorm"}},
    {"attention.qkv", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    {"attention.out", {"self_attn.o_proj"}},
    {"ffw_norm", {"post_attention_layernorm"}},
    {"ffw.gate", {"mlp.gate_proj"}},
    {"ffw.up", {"mlp.up_proj"}},
    {"ffw.down", {"mlp.down_proj"}}};

}  // namespace

std::vector<std::string> export_names(const std::string& parameter) {
  const auto model_end = parameter.find('.');  // of "main." or "fgram."
  const std::string name = parameter.substr(model_end + 1), blocks = "blocks.";
  if (const auto whole = kWhole.find(name); whole != kWhole.end()) return whole->second;
  const auto number_end = name.find('.', blocks.size()), kind = name.rfind('.');
  if (name.starts_with(blocks) && number_end < kind) {
    const std::string number = name.substr(blocks.size(), number_end - blocks.size());
    const auto found = kOfBlock.find(name.substr(number_end + 1, kind - number_end - 1));
    if (found != kOfBlock.end()) {
      const std::string suffix = name.ends_with(".bias") ? ".bias" : ".weight";
      std::vector<std::string> names;
      for (const std::string& outside : found->second) {
        names.push_back("model.layers." + number + "." + outside + suffix);
      }
      return names;
    }
  }
  throw std::out_of_range("no outside name for the parameter " + parameter);
}

std::vector<NamedTensor> exported_views(const ParameterSet& parameters) {
  std::vector<NamedTensor> views;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto names = export_names(parameters.spec(i).name);
    const Tensor& value = parameters.value(i);
    const std::int64_t rows = value.dim(0) / static_cast<std::int64_t>(names.size());
    for (std::size_t part = 0; part < names.size(); ++part) {
      views.push_back({names[part], value.rows(static_cast<std::int64_t>(part) * rows, rows)});
    }
  }
  return views;
}

}  // namespace scone
