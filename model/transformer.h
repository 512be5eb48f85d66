#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/ops/ops.h"
#include "model/parameter.h"
#include "model/tensor.h"
#include "model/tensor_parallel.h"

namespace scone {

/// Specs of the blocks and the final norm, named prefix + "blocks.N..." and prefix +
/// "final_norm...", in order of use.
void append_transformer_specs(const TransformerConfig& config, const std::string& prefix, Grid grid,
                              std::vector<ParameterSpec>& specs);

/// Throws InputError, naming `model` ("model.main"), where the shape is impossible: sizes below 1,
/// heads that do not divide the width, an odd head width with RoPE.
void validate(const TransformerConfig& config, const std::string& model);

/// Throws InputError, naming the keys, where `tensor_parallel` ranks cannot share the model's heads
/// and feed-forward layers evenly.
void validate_tensor_parallel(const TransformerConfig& config, const std::string& model,
                              int tensor_parallel, const std::string& tp_key);

/// Which positions attend to which: causal over sequences, trie, or with a cache. width and heads
/// are those of this rank, their tensor-parallel share.
class Attention {
 public:
  virtual ~Attention() = default;
  /// qkv: [rows, 3 width] with positions already in it; out: [rows, width]; log_sum_exp: [rows,
  /// heads].
  virtual void forward(Backend& backend, std::int64_t layer, const Tensor& qkv, const Tensor& out,
                       const Tensor& log_sum_exp) const = 0;
  /// d_qkv: [rows, 3 width].
  virtual void backward(Backend& backend, const Tensor& qkv, const Tensor& out,
                        const Tensor& log_sum_exp, const Tensor& d_out,
                        const Tensor& d_qkv) const = 0;
};

class CountingAllocator;

/// Sizes of what passes through one rank's share of a transformer.
struct TransformerShape {
  TransformerShape() = default;
  TransformerShape(const TransformerConfig& config, const TensorParallelSize& tp,
                   std::int64_t most_rows, DType compute_dtype);
  DType dtype = DType::fp32;              // of activations and of gradients in flight
  std::int64_t rows = 0, own_rows = 0;    // capacity: of all rows, of the rows held between layers
  std::int64_t width = 0, own_width = 0;  // of the stream, of this rank's heads together
  std::int64_t own_heads = 0, own_ffw = 0;
  bool gated = false;
};

/// What one forward pass keeps for its backward; statistics and log_sum_exp are fp32. Blocks share
/// the tensors that are not kept: all of them without training, those to be computed again with
/// recomputation.
struct TransformerActivations {
  struct Block {
    Tensor input, attention_norm, attention_statistics;  // [own rows, width], same, [own rows, 2]
    Tensor qkv, attended, log_sum_exp;  // [rows, 3 own width], [rows, own width], [rows, own heads]
    Tensor middle, ffw_norm, ffw_statistics;  // as the first three, of the ffw half
    Tensor up, gate, inner;                   // [rows, own ffw]; gate: swiglu only
  };
  std::vector<Block> blocks;
  Tensor output_input, output_statistics,
      output;  // of the final norm: [own rows, width], [own rows, 2], [own rows, width]

  TransformerActivations() = default;
  TransformerActivations(const TransformerConfig& config, const TransformerShape& shape,
                         bool training, Recompute recompute, Device device);
  /// What the constructor would allocate, without allocating.
  static std::size_t bytes_of(const TransformerConfig& config, const TransformerShape& shape,
                              bool training, Recompute recompute);
  /// Where the caller puts the input embeddings, [own rows, width].
  const Tensor& input() const { return blocks.empty() ? output_input : blocks.front().input; }
  std::size_t bytes = 0;

 private:
  void allocate(CountingAllocator& make, const TransformerConfig& config,
                const TransformerShape& shape, bool training, Recompute recompute);
};

/// Gradients in flight through one backward pass.
struct TransformerScratch {
  Tensor d_stream;                // [own rows, width]
  Tensor d_norm;                  // [rows, width], partial sums of the tensor-parallel group
  Tensor d_norm_own;              // [own rows, width]: d_norm itself where rows are not split
  Tensor d_qkv, d_inner, d_gate;  // [rows, 3 own width], [rows, own ffw] twice
  TransformerScratch() = default;
  TransformerScratch(const TransformerShape& shape, bool splits_rows, Device device);
  /// What the constructor would allocate, without allocating.
  static std::size_t bytes_of(const TransformerShape& shape, bool splits_rows);
  std::size_t bytes = 0;

 private:
  void allocate(CountingAllocator& make, const TransformerShape& shape, bool splits_rows);
};

/// A stack of pre-norm blocks and the final norm: x += attention(norm(x)); x += ffw(norm(x)). qkv,
/// up and gate are cut by column, out and down by row.
class Transformer {
 public:
  /// For up to most_rows rows.
  Transformer(const TransformerConfig& config, const std::string& prefix, ParameterSet& parameters,
              Backend& backend, const TensorParallel& tp, std::int64_t most_rows,
              Recompute recompute = Recompute::none);

  const TransformerShape& shape() const { return shape_; }
  std::size_t buffer_bytes() const { return full_.bytes(); }

  /// From activations.input() to activations.output. positions: int32 [rows], read with RoPE.
  void forward(TransformerActivations& activations, const Attention& attention,
               const Tensor& positions, std::int64_t rows) const;
  /// d_output: [own rows, width]. Leaves the input's gradient in scratch.d_stream; adds to
  /// parameter gradients. Must follow forward of the same activations. after_block(offset), if any:
  /// called as soon as the gradients at `offset` and beyond in the parameter set's flat buffer are
  /// complete as far as this transformer's go.
  void backward(const TransformerActivations& activations, const Attention& attention,
                const Tensor& positions, const Tensor& d_output, TransformerScratch& scratch,
                std::int64_t rows,
                const std::function<void(std::int64_t offset)>& after_block = {}) const;
  /// The calls of after_block that backward makes, where there is nothing to go back through.
  void no_backward(const std::function<void(std::int64_t offset)>& after_block) const;

 private:
  struct Parameter {
    Tensor value, gradient;
  };
  struct Norm {
    Parameter gain, bias;
  };
  struct Linear {
    Parameter weight, bias;
  };
  struct BlockParameters {
    Norm attention_norm, ffw_norm;
    Linear qkv, out, up, gate, down;
    std::int64_t offset;  // of the first in the flat buffers
  };
  using Block = TransformerActivations::Block;
  void norm(const Norm& parameters, const Tensor& x, const Tensor& y, const Tensor& statistics,
            std::int64_t rows) const;
  /// y = x W^T + bias, cut by column. x: [rows, in]; y: [rows, own out].
  void column_linear(const Linear& parameters, const Tensor& x, const Tensor& y,
                     std::int64_t rows) const;
  /// y = x W^T + bias + residual, cut by row. x: [rows, own in]; residual, y: [own rows, out].
  void row_linear(const Linear& parameters, const Tensor& x, const Tensor& residual,
                  const Tensor& y, std::int64_t rows) const;
  void norm_backward(const Norm& parameters, const Tensor& d_y, const Tensor& x,
                     const Tensor& statistics, const Tensor& d_x, bool accumulate,
                     std::int64_t rows) const;
  void linear_backward(const Linear& parameters, const Tensor& d_y, const Tensor& x,
                       const Tensor& d_x, bool accumulate, std::int64_t rows) const;
  /// Up to saved.attended.
  void attend(std::size_t index, const Block& saved, const Attention& attention,
              const Tensor& positions, std::int64_t rows) const;
  /// From saved.middle up to saved.inner.
  void feed_forward(const BlockParameters& block, const Block& saved, std::int64_t rows) const;

  TransformerConfig config_;
  Backend& backend_;
  TensorParallel tp_;
  TransformerShape shape_;
  Recompute recompute_;
  std::vector<BlockParameters> blocks_;
  Norm final_norm_;
  Tensor full_;  // [rows, width] where rows are split: gathered inputs, or partial outputs
};

}  // namespace scone
