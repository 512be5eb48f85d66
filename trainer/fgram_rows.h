#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "data/fgram_matcher.h"
#include "model/tensor.h"
#include "trainer/embedding_source.h"

namespace scone {

/// New tokens of one sequence: tokens[begin ..]. Before them stand at least the K - 1 tokens that
/// an f-gram may begin at, or all there are.
struct FgramPiece {
  std::span<const std::int32_t> tokens;
  std::size_t begin = 0;
};

/// The f-gram rows of the new tokens of some sequences, in the form that MainModel::decode takes.
class FgramRows {
 public:
  /// Finds the longest match at each new token and takes the rows from `source`, each distinct one
  /// once. matcher, source: null for a model without f-grams. rows() is of `device`.
  void look_up(std::span<const FgramPiece> pieces, const FgramMatcher* matcher,
               EmbeddingSource* source, std::int64_t width, Device device);

  /// Of the new tokens of all pieces, one after the other: index into rows(), or -1.
  std::span<const std::int32_t> row_of_position() const { return row_of_position_; }
  const Tensor& rows() const { return rows_; }  // [at least 1, width]

 private:
  std::vector<std::int64_t> matched_, ids_, distinct_;
  std::vector<std::int32_t> row_of_position_;
  Tensor buffer_, rows_;
};

}  // namespace scone
