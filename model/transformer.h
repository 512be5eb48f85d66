#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/ops/ops.h"
#include "model/parameter.h"
#include "model/tensor.h"

namespace scone {

/// Specs of the blocks and the final norm, named prefix + "blocks.N..." and prefix +
/// "final_norm...", in order of use.
void append_transformer_specs(const TransformerConfig& config, const std::string& prefix, Grid grid,
                              std::vector<ParameterSpec>& specs);

/// Throws InputError, naming `model` ("model.main"), where the shape is impossible: sizes below 1,
/// heads that do not divide the width, an odd head width with RoPE.
void validate(const TransformerConfig& config, const std::string& model);

/// Which positions attend to which: causal over sequences, trie, or with a cache.
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

/// What one forward pass keeps for its backward. Without training all blocks share one set.
struct TransformerActivations {
  struct Block {
    Tensor input, attention_norm, attention_statistics;  // [rows, width], same, [rows, 2]
    Tensor qkv, attended, log_sum_exp;        // [rows, 3 width], [rows, width], [rows, heads]
    Tensor middle, ffw_norm, ffw_statistics;  // as the first three, of the ffw half
    Tensor up, gate, inner;                   // [rows, ffw]; gate: swiglu only
  };
  std::vector<Block> blocks;
  Tensor output_input, output_statistics,
      output;             // of the final norm: [rows, width], [rows, 2], [rows, width]
  std::int64_t rows = 0;  // capacity

  TransformerActivations() = default;
  TransformerActivations(const TransformerConfig& config, std::int64_t row_capacity, bool training,
                         Device device);
  /// Where the caller puts the input embeddings, [rows, width].
  const Tensor& input() const { return blocks.empty() ? output_input : blocks.front().input; }
  std::size_t bytes = 0;
};

/// Gradients in flight through one backward pass.
struct TransformerScratch {
  Tensor d_stream, d_norm, d_qkv, d_inner,
      d_gate;  // [rows, width], same, [rows, 3 width], [rows, ffw] twice
  TransformerScratch() = default;
  TransformerScratch(const TransformerConfig& config, std::int64_t rows, Device device);
  std::size_t bytes = 0;
};

/// A stack of pre-norm blocks and the final norm: x += attention(norm(x)); x += ffw(norm(x)).
class Transformer {
 public:
  Transformer(const TransformerConfig& config, const std::string& prefix, ParameterSet& parameters,
              Backend& backend);

  /// From activations.input() to activations.output. positions: int32 [rows], read with RoPE.
  void forward(TransformerActivations& activations, const Attention& attention,
               const Tensor& positions, std::int64_t rows) const;
  /// d_output: [rows, width]. Leaves the input's gradient in scratch.d_stream; adds to parameter
  /// gradients.
  void backward(const TransformerActivations& activations, const Attention& attention,
                const Tensor& positions, const Tensor& d_output, TransformerScratch& scratch,
                std::int64_t rows) const;

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
  };
  void norm(const Norm& parameters, const Tensor& x, const Tensor& y, const Tensor& statistics,
            std::int64_t rows) const;
  void linear(const Linear& parameters, const Tensor& x, const Tensor& residual, const Tensor& y,
              std::int64_t rows) const;
  void norm_backward(const Norm& parameters, const Tensor& d_y, const Tensor& x,
                     const Tensor& statistics, const Tensor& d_x, bool accumulate,
                     std::int64_t rows) const;
  void linear_backward(const Linear& parameters, const Tensor& d_y, const Tensor& x,
                       const Tensor& d_x, bool accumulate, std::int64_t rows) const;

  TransformerConfig config_;
  Backend& backend_;
  std::vector<BlockParameters> blocks_;
  Norm final_norm_;
};

}  // namespace scone
