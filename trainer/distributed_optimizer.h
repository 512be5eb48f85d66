#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "checkpoint/tensor_slice.h"
#include "model/ops/ops.h"
#include "model/parameter.h"
#include "parallel/process_grid.h"

namespace scone {

struct OptimizerSettings {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0;         // where the ParameterSpec says so
  bool zero = false;               // ZeRO-1: optimizer state cut over the data-parallel group
  bool sequence_parallel = false;  // of the model: some replicated gradients are partial sums
  bool overlap = false;            // begin a bucket's reduction as soon as its gradients are final
  std::int64_t bucket_elements = 1 << 20;
  bool stochastic_rounding = false;  // of bf16 working copies, by `seed`
  std::uint64_t seed = 0;
};

/// Gradient reduction and AdamW for one model's parameters over its process grid. The flat buffers
/// are cut into buckets. Without ZeRO each bucket is summed over the data-parallel group and every
/// rank updates all of it; with ZeRO stage 1 (Rajbhandari et al., arXiv 1910.02054) a rank sums and
/// updates its slice of each bucket, holds moments for that alone, and what the layers compute with
/// is gathered: the values, or with bf16 the working copy, and then the fp32 values of other ranks'
/// slices are stale.
class DistributedOptimizer {
 public:
  /// All must outlive this.
  DistributedOptimizer(ParameterSet& parameters, const ProcessGrid& grid, Backend& backend,
                       const OptimizerSettings& settings);
  ~DistributedOptimizer();

  /// The gradients from `offset` of the flat buffer on are final. Collective over the grid's
  /// groups: called with the same offsets on every rank. Without overlap it does nothing.
  void gradients_final(std::int64_t offset);
  /// Lets reductions under way make progress.
  void poll();
  /// All gradients are final: returns when they are reduced (with ZeRO: this rank's slices).
  void finish_reduction();

  /// This rank's share of the squared norm of the model's gradient: summed over all ranks it counts
  /// each parameter once.
  double squared_norm() const;
  /// Updates the values on every rank. step: 1 for the first update. gradient_scale multiplies the
  /// gradients first (clipping).
  void step(std::int64_t step, double lr, double gradient_scale);

  /// Reduced gradients where all ranks need them whole (tests, inspection): with ZeRO gathers the
  /// slices into the parameter set's gradients. Collective.
  void gather_gradients();

  /// Boxes of the parameters and both moments ("parameters/..", "adam_m/..", "adam_v/.."), in
  /// memory of the host: this object's and the parameters' own, or on a device a copy of it.
  /// for_writing: filled, and over all ranks each element once; else all that this rank holds, to
  /// be filled by the caller, who then calls take_state().
  std::vector<TensorSlice> state(bool for_writing);
  /// What was put into the boxes of state(false) becomes the state, after `updates` steps: bf16
  /// copies are rounded as the last of these rounded them.
  void take_state(std::int64_t updates);
  std::size_t moment_bytes() const { return first_moment_.bytes() + second_moment_.bytes(); }
  /// Gradients held beside the parameter set's (ZeRO).
  std::size_t gradient_bytes() const { return reduced_.bytes(); }

  /// The slice of a bucket of `count` elements that is a replica's.
  static Slice slice_of_bucket(std::int64_t count, const Part& replica);

 private:
  struct Bucket {
    std::int64_t begin, count;         // of the flat buffers
    std::int64_t state_begin;          // of this rank's slice in the state buffers
    Slice own;                         // this rank's slice, relative to begin
    std::vector<std::int64_t> counts;  // of every rank's slice
  };
  /// A piece of one parameter.
  struct Piece {
    std::size_t parameter;
    std::int64_t flat_begin, state_begin, count;
  };
  std::vector<Piece> pieces(bool slices_only) const;
  void reduce(std::size_t bucket, bool in_background);
  /// Puts the sums of the pieces over the tensor group in their place. They are as many, and as
  /// long, on all ranks of it. contributes: whether this rank's count; else as if they were 0.
  void sum_over_tensor_group(std::span<const Tensor> pieces, bool contributes);
  void sum_split_rows(const Bucket& bucket);
  /// Gradients of what all tensor-parallel ranks hold become those of the first of them. On a
  /// device each rank may have added in another order: NCCL by the links of the data-parallel
  /// group, the embedding's backward pass by its share of the vocabulary. On the processor all add
  /// alike.
  void take_replicated_from_first();
  /// The reduced one.
  Tensor gradient_of(const Piece& piece) const;
  const Tensor& gradients_of_update() const;
  void make_host_copies();
  void round_working(std::int64_t updates);

  ParameterSet& parameters_;
  const ProcessGrid& grid_;
  Backend& backend_;
  OptimizerSettings settings_;
  std::vector<Bucket> buckets_;
  std::vector<Piece> updated_, counted_;  // what this rank updates, what it counts in the norm
  Tensor first_moment_, second_moment_;   // flat: of all elements, with ZeRO of this rank's slices
  Tensor reduced_;                        // ZeRO: sums of this rank's slices
  std::size_t reducing_from_;             // buckets from here on are reduced or under way
  std::vector<std::unique_ptr<PendingCollective>> pending_;
  Tensor packed_;  // for sum_over_tensor_group
  // Values and moments as state() shows them.
  Tensor host_values_, host_first_moment_, host_second_moment_;
};

}  // namespace scone
