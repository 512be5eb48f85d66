#include "checkpoint/export_names.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace scone {
namespace {

struct NamePair {
  const char* ours;
  std::array<const char*, 3> outside;  // one a part; the unused are null
  int parts;
};

constexpr std::array<NamePair, 5> kWhole = {{
    {"main.token_embedding", {"model.embed_tokens.weight"}, 1},
    {"main.position_embedding", {"model.embed_positions.weight"}, 1},
    {"main.final_norm.gain", {"model.norm.weight"}, 1},
    {"main.final_norm.bias", {"model.norm.bias"}, 1},
    {"main.head", {"lm_head.weight"}, 1},
}};

// Of one block, behind "main.blocks.N." and "model.layers.N.".
constexpr std::array<NamePair, 4> kBlockNorm = {{
    {"attention_norm.gain", {"input_layernorm.weight"}, 1},
    {"attention_norm.bias", {"input_layernorm.bias"}, 1},
    {"ffw_norm.gain", {"post_attention_layernorm.weight"}, 1},
    {"ffw_norm.bias", {"post_attention_layernorm.bias"}, 1},
}};

// Linear layers of one block, before ".weight" or ".bias".
constexpr std::array<NamePair, 5> kBlockLinear = {{
    {"attention.qkv", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, 3},
    {"attention.out", {"self_attn.o_proj"}, 1},
    {"ffw.gate", {"mlp.gate_proj"}, 1},
    {"ffw.up", {"mlp.up_proj"}, 1},
    {"ffw.down", {"mlp.down_proj"}, 1},
}};

const std::string kOurBlocks = "main.blocks.";
const std::string kOutsideBlocks = "model.layers.";

/// {block prefix with number and dot, rest}; nullopt where `name` is not of a block.
std::optional<std::pair<std::string, std::string>> split_block(const std::string& name,
                                                               const std::string& blocks) {
  if (!name.starts_with(blocks)) return std::nullopt;
  const auto dot = name.find('.', blocks.size());
  if (dot == std::string::npos || dot == blocks.size()) return std::nullopt;
  const std::string number = name.substr(blocks.size(), dot - blocks.size());
  if (!std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    return std::nullopt;
  }
  return std::pair{number + ".", name.substr(dot + 1)};
}

/// Calls visit(our name, outside name, part, parts) for every pair of the table; block names are
/// those of the block with this "N.".
template <class Visit>
void for_each_pair(const std::string& block, const Visit& visit) {
  const auto part = [](const NamePair& pair, int i) {
    return std::string(pair.outside.at(static_cast<std::size_t>(i)));
  };
  for (const NamePair& pair : kWhole) visit(std::string(pair.ours), part(pair, 0), 0, 1);
  if (block.empty()) return;
  for (const NamePair& pair : kBlockNorm) {
    visit(kOurBlocks + block + pair.ours, kOutsideBlocks + block + part(pair, 0), 0, 1);
  }
  for (const NamePair& pair : kBlockLinear) {
    for (const char* kind : {".weight", ".bias"}) {
      for (int i = 0; i < pair.parts; ++i) {
        visit(kOurBlocks + block + pair.ours + kind, kOutsideBlocks + block + part(pair, i) + kind,
              i, pair.parts);
      }
    }
  }
}

}  // namespace

std::vector<std::string> export_names(const std::string& parameter) {
  const std::string fgram = "fgram.";
  if (parameter.starts_with(fgram)) return export_names("main." + parameter.substr(fgram.size()));
  const auto split = split_block(parameter, kOurBlocks);
  std::vector<std::string> names;
  for_each_pair(split ? split->first : "",
                [&](const std::string& ours, const std::string& outside, int, int) {
                  if (ours == parameter) names.push_back(outside);
                });
  if (names.empty()) throw std::out_of_range("no outside name for the parameter " + parameter);
  return names;
}

std::optional<ExportedPart> parameter_of_export_name(const std::string& name) {
  const auto split = split_block(name, kOutsideBlocks);
  std::optional<ExportedPart> found;
  for_each_pair(split ? split->first : "",
                [&](const std::string& ours, const std::string& outside, int part, int parts) {
                  if (outside == name) found = ExportedPart{ours, part, parts};
                });
  return found;
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
