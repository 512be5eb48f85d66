#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/model_config.h"
#include "model/parameter.h"
#include "model/tensor.h"
#include "model/tensor_parallel.h"

namespace scone {

class Backend;

/// A forest of f-gram prefixes in depth-first preorder (parents before children, each subtree
/// contiguous). Node i stands for the token sequence root..i. Roots are single tokens.
struct TrieNodes {
  std::span<const std::int32_t> token;   // last token of the node's sequence, by row of the table
  std::span<const std::int32_t> parent;  // node index, < own index; -1: root
  std::span<const std::int32_t> depth;   // 0 for roots, = position in the f-gram model
  std::int64_t size() const { return static_cast<std::int64_t>(token.size()); }
};

/// The token embeddings that nodes start from, and where their gradients are added: [rows, width]
/// each. The main model's whole "main.token_embedding", or a copy of the rows that a batch needs.
struct TokenTable {
  Tensor values, gradients;
};
/// The token embedding of a main model that is not sharded.
TokenTable whole_token_table(const ParameterSet& main_parameters);

std::vector<ParameterSpec> fgram_parameter_specs(const ModelConfig& config);

/// Nodes [begin, end) of the batch, with `repeats` ancestors of node begin in front.
struct TrieChunk {
  std::int64_t begin, end, repeats;
  std::int64_t size() const { return repeats + end - begin; }
};
/// How a forest of these depths is cut into chunks of at most `most_nodes`, repeats included.
std::vector<TrieChunk> trie_chunks(std::span<const std::int32_t> depth, std::int64_t most_nodes);

/// A_fgram over a trie: every node computed once, linear layers dense over [nodes, width], each
/// node attending to its ancestors and itself. Works in chunks of at most config.fgram_chunk_nodes:
/// a contiguous range of nodes preceded by the ancestors of its first (at most K - 1, computed
/// again), which closes it under ancestors.
class FgramModel {
 public:
  /// parameters from fgram_parameter_specs, of this rank's part of tp. With tensor parallelism
  /// forward and backward are collective over its group, whose ranks pass the same arguments; each
  /// adds its share of the token table's gradients, so that each node's counts once in the group.
  /// Throws InputError where the group cannot share the model.
  FgramModel(const ModelConfig& config, ParameterSet& parameters, const TokenTable& tokens,
             Backend& backend, bool training, const TensorParallel& tp = {});
  ~FgramModel();

  /// Replaces the token table, for the next forward and its backward.
  void use_token_table(const TokenTable& tokens);

  /// rows: fp32 [nodes, width], the final norm's output for every node.
  void forward(const TrieNodes& nodes, const Tensor& rows);

  /// Must follow forward of the same nodes. row_gradients: fp32 [nodes, width] (zero where a node
  /// is no batch f-gram). Adds to the gradients of the parameters and of the token table. With
  /// FgramRecompute::chunk all chunks but the last run forward again. gradients_final: as of
  /// MainModel, for the f-gram model's parameters; the same calls whatever the nodes, even none.
  void backward(const TrieNodes& nodes, const Tensor& row_gradients,
                const std::function<void(std::int64_t offset)>& gradients_final = {});

  /// Nodes that the last forward computed, repeated ancestors included (recomputation not counted).
  std::int64_t nodes_computed() const;
  std::size_t activation_bytes() const;
  /// What activation_bytes() is of a model made for training once it has gone through a trie of
  /// that many chunks, without making one.
  static std::size_t training_bytes(const ModelConfig& config, const TensorParallelSize& tp,
                                    DType dtype, std::int64_t chunks);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
