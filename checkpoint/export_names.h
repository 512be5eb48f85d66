#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/parameter.h"

namespace scone {

/// The outside names of one of our parameters, as Hugging Face's Llama family has them, in the
/// order of its equal pieces of axis 0:
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
/// Throws std::out_of_range for a parameter that the table does not hold.
std::vector<std::string> export_names(const std::string& parameter);

/// All parameters under their outside names, as views of the values: to write or to read into.
std::vector<NamedTensor> exported_views(const ParameterSet& parameters);

}  // namespace scone
