#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/fgram_table.h"
#include "data/fgram_trie.h"
#include "data/fgram_vocabulary.h"
#include "model/fgram_model.h"
#include "model/tensor.h"

namespace scone {

/// Where the rows of matched f-grams come from: the live f-gram model, or the baked table. All
/// above it is the same code in training, evaluation and inference.
class EmbeddingSource {
 public:
  virtual ~EmbeddingSource() = default;
  /// out[i, :] = row of f-gram ids[i]. ids: distinct, ascending; out: [ids, width].
  virtual void rows(std::span<const std::int64_t> ids, const Tensor& out) = 0;
};

/// The f-gram model, evaluated on the trie of the f-grams asked for.
class LiveFgramSource final : public EmbeddingSource {
 public:
  LiveFgramSource(const FgramVocabulary& vocabulary, FgramModel& model, std::int64_t width)
      : vocabulary_(vocabulary), model_(model), width_(width) {}

  void rows(std::span<const std::int64_t> ids, const Tensor& out) override;
  /// Backward of the last rows(): row_gradients [ids, width]. Adds to the parameters' gradients.
  void backward(const Tensor& row_gradients);

  const FgramTrie& trie() const { return trie_; }  // of the last rows()
  std::int64_t nodes_computed() const { return model_.nodes_computed(); }

 private:
  TrieNodes nodes() const { return {trie_.token, trie_.parent, trie_.depth}; }

  const FgramVocabulary& vocabulary_;
  FgramModel& model_;
  std::int64_t width_;
  FgramTrie trie_;
  Tensor node_rows_;  // [nodes, width], rows in forward, their gradients in backward
};

/// The table of a bundle.
class TableSource final : public EmbeddingSource {
 public:
  explicit TableSource(const FgramTable& table) : table_(table) {}
  void rows(std::span<const std::int64_t> ids, const Tensor& out) override {
    table_.lookup(ids, out);
  }

 private:
  const FgramTable& table_;
};

/// A buffer of rows that is allocated anew only when it must grow: returns a view of its first
/// `rows` rows (at least one) of `width`, with whatever content they had.
Tensor reserve_rows(Tensor& buffer, std::int64_t rows, std::int64_t width);

}  // namespace scone
