#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "model/fgram_model.h"
#include "model/main_model.h"
#include "model/ops/ops.h"
#include "reference_model.h"

namespace scone {

/// A named choice of every option of the models.
struct ModelCase {
  std::string name;
  ModelConfig config;
};
std::vector<ModelCase> model_cases();
/// How GoogleTest shows a case.
inline void PrintTo(const ModelCase& model_case, std::ostream* out) { *out << model_case.name; }

/// Two sequences of 13 random tokens over a vocabulary of 17, with documents apart, some targets
/// missing and matches of 2 to K tokens at about half of the positions.
reference::Batch random_batch(const ModelConfig& config, std::uint64_t seed);

/// Both models on a batch, as a training step runs them, on any backend.
struct SconeModel {
  ModelConfig config;
  Backend& backend;
  ParameterSet main_parameters, fgram_parameters;
  std::unique_ptr<MainModel> main;
  std::unique_ptr<FgramModel> fgram;
  std::vector<std::int32_t> token, parent, depth;  // the batch's trie, preorder
  std::vector<std::int32_t> row_of_position;
  Tensor rows, row_gradients;

  /// Random values for every parameter, biases and gains included.
  SconeModel(const ModelConfig& model, const reference::Batch& batch, std::uint64_t seed,
             Backend& device = cpu_backend(), DType dtype = DType::fp32);
  /// Makes the trie of a batch's matches, and rows for it.
  void use(const reference::Batch& batch);
  TrieNodes nodes() const { return {token, parent, depth}; }
  MicroBatch microbatch(const reference::Batch& batch) const;
  double forward(const reference::Batch& batch, std::span<float> losses = {});
  /// Sets the gradients of loss_scale * the sum of losses.
  double forward_backward(const reference::Batch& batch, float loss_scale);
};

}  // namespace scone
