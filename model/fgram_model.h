#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/model_config.h"
#include "model/parameter.h"
#include "model/tensor.h"

namespace scone {

class Backend;

/// A forest of f-gram prefixes in depth-first preorder (parents before children, each subtree
/// contiguous). Node i stands for the token sequence root..i. Roots are single tokens.
struct TrieNodes {
  std::span<const std::int32_t> token;   // last token of the node's sequence
  std::span<const std::int32_t> parent;  // node index, < own index; -1: root
  std::span<const std::int32_t> depth;   // 0 for roots, = position in the f-gram model
  std::int64_t size() const { return static_cast<std::int64_t>(token.size()); }
};

std::vector<ParameterSpec> fgram_parameter_specs(const ModelConfig& config);

/// A_fgram over a trie: every node computed once, linear layers dense over [nodes, width], each
/// node attending to its ancestors and itself. Works in chunks of at most config.fgram_chunk_nodes:
/// a contiguous range of nodes preceded by the ancestors of its first (at most K - 1, computed
/// again), which closes it under ancestors.
class FgramModel {
 public:
  /// parameters from fgram_parameter_specs; main_parameters hold the shared token embedding
  /// "main.token_embedding", whose gradient backward adds to.
  FgramModel(const ModelConfig& config, ParameterSet& parameters, ParameterSet& main_parameters,
             Backend& backend, bool training);
  ~FgramModel();

  /// rows: [nodes, width], the final norm's output for every node.
  void forward(const TrieNodes& nodes, const Tensor& rows);

  /// Must follow forward of the same nodes. row_gradients: [nodes, width] (zero where a node is no
  /// batch f-gram). Adds to the gradients of both parameter sets. With FgramRecompute::chunk all
  /// chunks but the last run forward again.
  void backward(const TrieNodes& nodes, const Tensor& row_gradients);

  /// Nodes that the last forward computed, repeated ancestors included (recomputation not counted).
  std::int64_t nodes_computed() const;
  std::size_t activation_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
