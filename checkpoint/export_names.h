#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/parameter.h"

namespace scone {

/// Names of the main model's parameters as Hugging Face's Llama family has them:
///
///   main.token_embedding                     model.embed_tokens.weight
///   main.position_embedding                  model.embed_positions.weight
///   main.blocks.N.attention_norm.gain|bias   model.layers.N.input_layernorm.weight|bias
///   main.blocks.N.attention.qkv.weight|bias  model.layers.N.self_attn.{q,k,v}_proj.weight|bias
///   main.blocks.N.attention.out.weight|bias  model.layers.N.self_attn.o_proj.weight|bias
///   main.blocks.N.ffw_norm.gain|bias         model.layers.N.post_attention_layernorm.weight|bias
///   main.blocks.N.ffw.{gate,up,down}.weight|bias  model.layers.N.mlp.{..}_proj.weight|bias
///   main.final_norm.gain|bias                model.norm.weight|bias
///   main.head                                lm_head.weight (untied only)
///
/// qkv is stored as three tensors: its rows in thirds are q, k and v. The f-gram model, in a file
/// of its own, has the same names for "fgram." as the main model for "main.".
struct ExportedPart {
  std::string parameter;  // our name
  int part = 0;           // which of `parts` equal pieces of axis 0
  int parts = 1;
  bool operator==(const ExportedPart&) const = default;
};

/// The outside names of one of our parameters, in the order of its parts. Throws std::out_of_range
/// for a parameter that the table above does not hold.
std::vector<std::string> export_names(const std::string& parameter);

/// The inverse, of the main model. nullopt for a name the table does not hold.
std::optional<ExportedPart> parameter_of_export_name(const std::string& name);

/// All parameters under their outside names, as views of the values: to write or to read into.
std::vector<NamedTensor> exported_views(const ParameterSet& parameters);

}  // namespace scone
