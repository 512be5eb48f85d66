#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/parameter.h"

namespace scone::reference {

using Values = std::vector<double>;
using Parameters = std::map<std::string, Values>;

/// A batch in the plainest form: each position has its sequence's tokens and, where an f-gram ends,
/// the f-gram's tokens.
struct Batch {
  std::int64_t sequences = 0, length = 0;
  std::vector<std::int32_t> tokens, targets, attention_start;
  std::vector<std::vector<std::int32_t>> match;  // empty: none
};

/// Copies the parameters' values, by name.
Parameters to_double(const ParameterSet& main, const ParameterSet& fgram);

/// Output of a transformer, [n, width], with dense masks: position i attends to start[i] .. i.
/// input: [n, width], without position embeddings.
Values transformer(const TransformerConfig& config, const Parameters& parameters,
                   const std::string& prefix, Values input, const std::vector<std::int32_t>& start);

/// A_fgram of one f-gram run alone: [width].
Values fgram_row(const ModelConfig& config, const Parameters& parameters,
                 const std::vector<std::int32_t>& tokens);

/// Sum of -log p(target) of the whole SCONE model. losses, if given: one a position.
double loss(const ModelConfig& config, const Parameters& parameters, const Batch& batch,
            Values* losses = nullptr);

}  // namespace scone::reference
