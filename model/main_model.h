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

/// Sequences of equal length for the main model. All spans have sequences * length entries.
struct MicroBatch {
  std::int64_t sequences = 0;
  std::int64_t length = 0;
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> targets;  // next token; -1: no loss at this position
  std::span<const std::int32_t>
      attention_start;  // first position of the own sequence this one attends to
  std::span<const std::int32_t>
      row_of_position;  // index into the rows of the embedding source; -1: none; kRowElsewhere:
                        // among the rows of another rank of the tensor-parallel group
  std::int64_t positions() const { return sequences * length; }
};

/// Keys and values of one sequence's past tokens, for decoding.
class KeyValueCache {
 public:
  /// dtype: the model's. capacity: most tokens, at most the context; 0: the context.
  KeyValueCache(const TransformerConfig& config, Device device, DType dtype = DType::fp32,
                std::int64_t capacity = 0);
  std::int64_t length() const { return length_; }
  std::int64_t capacity() const { return capacity_; }
  void clear() { length_ = 0; }

 private:
  friend class MainModel;
  std::int64_t capacity_;
  Tensor entries_;  // [layers, capacity, 2 width]
  std::int64_t length_ = 0;
};

/// New tokens of one sequence of a batch that is decoded.
struct DecodeSequence {
  KeyValueCache* cache = nullptr;  // of the tokens before; the new ones are appended
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t>
      row_of_position;      // as in MicroBatch, one a token; empty: none has a row
  std::span<float> logits;  // [vocabulary], takes those of the last token; empty: not wanted
};

struct MainModelOptions {
  std::int64_t max_positions = 0;  // of a microbatch
  bool training = false;           // false leaves out what only backward needs
  TensorParallel tp = {};
  Recompute recompute = Recompute::none;
};

/// Parameter specs of the main model, token embedding "main.token_embedding" [vocabulary, width]
/// first; the head "main.head" [vocabulary, width] only when untied.
std::vector<ParameterSpec> main_parameter_specs(const ModelConfig& config);

/// Decoder transformer over e_1..e_m with a head over the token vocabulary. e_i is
/// rows[row_of_position[i]] where there is a row (plus the token's embedding with
/// CombineKind::add), the token's embedding elsewhere.
class MainModel {
 public:
  /// What activation_bytes() is of a model made for training, without making one.
  static std::size_t training_bytes(const ModelConfig& config, std::int64_t max_positions,
                                    const TensorParallelSize& tp, Recompute recompute, DType dtype,
                                    Device device);
  /// Positions whose logits exist at a time: few enough for a cache on the processor, enough to
  /// fill an accelerator.
  static std::int64_t head_tile(Device device, std::int64_t positions);

  /// parameters: made from main_parameter_specs(config), of this rank's part of options.tp; must
  /// outlive this. Allocates all activations. With tensor parallelism forward and forward_backward
  /// are collective over its group, whose ranks pass the same microbatch; rows may be shared out
  /// among them. Throws InputError where the group cannot share the model.
  MainModel(const ModelConfig& config, ParameterSet& parameters, Backend& backend,
            const MainModelOptions& options);
  ~MainModel();

  /// Sum (not mean) of -log p(target) over positions with a target. losses, if not empty: one entry
  /// a position, 0 where there is no target. rows: [any, width].
  double forward(const MicroBatch& batch, const Tensor& rows, std::span<float> losses = {});

  /// forward, then backward of loss_scale * (sum of losses): adds to the parameters' gradients, and
  /// to row_gradients (shape of rows). Returns the unscaled sum. gradients_final(offset), if any:
  /// called during the backward pass when the gradients from `offset` on in the parameters' flat
  /// buffer are complete for this microbatch; never for the token embedding, the first.
  double forward_backward(const MicroBatch& batch, const Tensor& rows, const Tensor& row_gradients,
                          float loss_scale,
                          const std::function<void(std::int64_t offset)>& gradients_final = {});

  /// Appends the new tokens of several sequences to their caches, one or many each, in one pass
  /// over the weights (in more where they are over max_positions together), and writes the logits
  /// that are wanted. Throws std::out_of_range beyond a cache's capacity or for ids out of range,
  /// std::invalid_argument for a sequence without tokens, spans of other sizes, or one cache twice;
  /// std::logic_error with tensor parallelism.
  void decode(std::span<const DecodeSequence> sequences, const Tensor& rows);

  std::size_t activation_bytes() const;
  Device device() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
