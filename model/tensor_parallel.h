#pragma once

#include <cstdint>

#include "model/ops/ops.h"
#include "model/tensor.h"
#include "parallel/communicator.h"
#include "parallel/sharding.h"

namespace scone {

/// How many ranks share a model's layers, and whether they cut what lies between these by rows.
struct TensorParallelSize {
  int ranks = 1;
  bool splits_rows = false;
  /// Rows that a rank holds between layers, at most, of up to `rows` rows.
  std::int64_t own_capacity(std::int64_t rows) const {
    return splits_rows ? (rows + ranks - 1) / ranks : rows;
  }
};

/// A model's tensor-parallel group as its layers see it. Weights are cut by column (the layer's
/// outputs) or by row (its inputs), as in Shoeybi et al., arXiv 1909.08053; what lies between two
/// such layers is either whole on every rank or, with sequence parallelism (Korthikanti et al.,
/// arXiv 2205.05198), cut by rows: slices of ceil(rows / size), the last shorter or empty.
class TensorParallel {
 public:
  TensorParallel() = default;  // one rank alone
  /// group must outlive this.
  TensorParallel(Communicator& group, bool sequence_parallel)
      : group_(group.size() > 1 ? &group : nullptr), sequence_parallel_(sequence_parallel) {}

  int rank() const { return group_ == nullptr ? 0 : group_->rank(); }
  int size() const { return group_ == nullptr ? 1 : group_->size(); }
  Part part() const { return {rank(), size()}; }
  Communicator* group() const { return group_; }  // null: alone
  bool splits_rows() const { return group_ != nullptr && sequence_parallel_; }

  /// The rows that this rank holds between layers: all of them, or with sequence parallelism its
  /// slice.
  Slice own_rows(std::int64_t rows) const {
    return splits_rows() ? slice_of(rows, part()) : Slice{0, rows};
  }
  TensorParallelSize shape() const { return {size(), splits_rows()}; }
  /// Capacity for own_rows of up to `rows` rows.
  std::int64_t own_capacity(std::int64_t rows) const { return shape().own_capacity(rows); }

  /// own: [own rows, width]. Returns all [rows, width]: own itself where rows are not split, else
  /// `full`, filled. Collective.
  Tensor gather(Backend& backend, const Tensor& own, const Tensor& full, std::int64_t rows) const;
  /// Sums partial [rows, width] over the group. Where rows are not split, in place (own is
  /// partial), else into own: [own rows, width]. Nothing to do alone. Collective.
  void reduce(const Tensor& partial, const Tensor& own, std::int64_t rows) const;

 private:
  Communicator* group_ = nullptr;
  bool sequence_parallel_ = false;
};

}  // namespace scone
