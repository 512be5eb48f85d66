#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "model/model_config.h"
#include "model/tensor.h"

namespace scone {

/// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101).
struct AdamwStep {
  float lr = 0;
  float beta1 = 0.9F;
  float beta2 = 0.95F;
  float eps = 1e-8F;
  float weight_decay = 0;    // decoupled: value -= lr * weight_decay * value
  std::int64_t step = 1;     // 1 for the first step, for bias correction
  float gradient_scale = 1;  // multiplies the gradient first (clipping, 1 / tokens)
  // The bf16 copy of a value is rounded up or down at random, with probabilities that keep its
  // mean, by a generator keyed by (seed, step, index of the value); else to the nearest.
  bool stochastic_rounding = false;
  std::uint64_t seed = 0;
};

/// A range of parameters that AdamW updates: [value_begin, value_begin + count) of the values,
/// which has its gradient and moments at state_begin.
struct AdamwRange {
  std::int64_t value_begin = 0, state_begin = 0, count = 0;
  bool weight_decay = false;
};

/// The tensors that AdamW works on, all flat.
struct AdamwTensors {
  Tensor values, gradients, m, v;  // fp32
  Tensor working;  // bf16 copy of the values, written with them; empty where there is none
};

/// Sequences of equal length with heads of equal width. rows = sequences * length.
struct CausalShape {
  std::int64_t sequences = 0;
  std::int64_t length = 0;
  std::int64_t heads = 0;
  std::int64_t head_width = 0;
};

/// A forest of nodes in preorder.
struct TrieShape {
  std::int64_t nodes = 0;
  std::int64_t heads = 0;
  std::int64_t head_width = 0;
};

/// Where the input embedding of each position comes from. Integer tensors: [rows].
struct EmbeddingInput {
  Tensor tokens;     // int32, row of the token embedding; -1: another rank's, counts as zero here
  Tensor positions;  // int32, index into the position embedding; unread where there is none
  // int32, index into rows; -1: the position has no row; -2: another rank's row, counts as zero
  // here. Empty: no position has a row.
  Tensor row_of_position;
  CombineKind combine = CombineKind::replace;
};

constexpr std::int32_t kRowElsewhere = -2;  // in row_of_position
constexpr float kNormEpsilon = 1e-5F;
constexpr float kRopeBase = 10000.0F;
constexpr std::int64_t kMaxTrieDepth = 64;  // most nodes on a path from a root

/// The operations of a transformer on one kind of device. Tensors are contiguous and of the
/// backend's device. The floating-point tensors of one operation are all fp32 or all bf16, sums
/// being taken in fp32 either way, but for those that are always fp32: parameter gradients,
/// statistics, log_sum_exp, losses, the f-gram rows and their gradients, and all that the optimizer
/// works on. `rows` says how many leading rows are used: tensors may have more. Outputs do not
/// alias inputs unless said so. Results are bit-identical from run to run and do not depend on the
/// number of threads. An empty Tensor stands for an absent optional argument. `d_x` is the gradient
/// of x; parameter gradients (weights, biases, gains, embeddings) are added to, others are
/// overwritten unless said otherwise. A device may still be at work when an operation returns; the
/// next one comes after it, download() and what returns a number wait for it. A host span may be
/// changed as soon as the call returns. A backend may be used by several threads at once on
/// different tensors.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device device() const = 0;

  // Moving data.
  /// target[i] = source[i], [source.size()]; target int32.
  virtual void upload(std::span<const std::int32_t> source, const Tensor& target) = 0;
  /// The same; target fp32, or bf16 (rounded to the nearest, ties to even).
  virtual void upload(std::span<const float> source, const Tensor& target) = 0;
  /// target[i] = source[i], [target.size()]; source fp32 or bf16.
  virtual void download(const Tensor& source, std::span<float> target) = 0;
  /// Device to same device; target.elements() >= source.elements(). Both of one type, or one fp32
  /// and the other bf16.
  virtual void copy(const Tensor& source, const Tensor& target) = 0;
  virtual void zero(const Tensor& target) = 0;
  /// Returns when all that was begun is done.
  virtual void synchronize() = 0;

  // Linear layers. weight: [out, in], bias: [out] or empty.
  /// y = x W^T + bias + residual. x: [rows, in]; residual: [rows, out] or empty, may be y itself;
  /// y: [rows, out].
  virtual void linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& residual, const Tensor& y, std::int64_t rows) = 0;
  /// d_x (+)= d_y W. d_y: [rows, out]; d_x: [rows, in].
  virtual void linear_backward_input(const Tensor& d_y, const Tensor& weight, const Tensor& d_x,
                                     bool accumulate, std::int64_t rows) = 0;
  /// The first half of a feed-forward layer: pre = x W^T + bias, y = gelu(pre). pre, y: [rows,
  /// out].
  virtual void linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                           const Tensor& pre, const Tensor& y, std::int64_t rows) = 0;
  /// Through a linear layer and the gelu before it: d_pre = (d_y W) * gelu'(pre). d_y: [rows, out];
  /// pre, d_pre: [rows, in].
  virtual void linear_gelu_backward_input(const Tensor& d_y, const Tensor& weight,
                                          const Tensor& pre, const Tensor& d_pre,
                                          std::int64_t rows) = 0;
  /// d_weight += d_y^T x, d_bias += column sums of d_y (where not empty).
  virtual void linear_backward_weight(const Tensor& d_y, const Tensor& x, const Tensor& d_weight,
                                      const Tensor& d_bias, std::int64_t rows) = 0;

  // Norms over the last axis. gain, bias: [width]; bias empty: none.
  /// layernorm: y = (x - mean) * r * gain + bias, r = 1 / sqrt(variance + kNormEpsilon); rmsnorm:
  /// mean = 0, variance = mean of squares. x, y: [rows, width]; statistics: [rows, 2] = (mean, r).
  virtual void norm(NormKind kind, const Tensor& x, const Tensor& gain, const Tensor& bias,
                    const Tensor& y, const Tensor& statistics, std::int64_t rows) = 0;
  /// d_x: [rows, width]; accumulate adds to it.
  virtual void norm_backward(NormKind kind, const Tensor& d_y, const Tensor& x, const Tensor& gain,
                             const Tensor& statistics, const Tensor& d_x, bool accumulate,
                             const Tensor& d_gain, const Tensor& d_bias, std::int64_t rows) = 0;

  // Activations, element-wise over `elements` leading elements.
  /// y = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the tanh form of GPT-2.
  virtual void gelu(const Tensor& x, const Tensor& y, std::int64_t elements) = 0;
  /// d_x may be d_y.
  virtual void gelu_backward(const Tensor& d_y, const Tensor& x, const Tensor& d_x,
                             std::int64_t elements) = 0;
  /// y = silu(gate) * up, silu(g) = g / (1 + exp(-g)).
  virtual void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y,
                      std::int64_t elements) = 0;
  /// d_up may be d_y.
  virtual void swiglu_backward(const Tensor& d_y, const Tensor& gate, const Tensor& up,
                               const Tensor& d_gate, const Tensor& d_up, std::int64_t elements) = 0;

  // Attention. qkv: [rows, 3 width], width = heads * head_width, q | k | v, each split by head.
  /// Rotates q and k in place by position * kRopeBase^(-2 i / head_width), pairing element i of a
  /// head with i + head_width / 2 (Su et al., arXiv 2104.09864; half-split pairing). positions:
  /// int32 [rows]. inverse rotates back, which is the backward pass on d_qkv.
  virtual void rope(const Tensor& qkv, const Tensor& positions, std::int64_t heads,
                    std::int64_t head_width, bool inverse, std::int64_t rows) = 0;
  /// Position i of a sequence attends to attention_start[i] .. i of the same sequence with weights
  /// softmax(q k / sqrt(head_width)). attention_start: int32 [rows], 0 <= attention_start[i] <= i,
  /// as index within the sequence. out: [rows, width]; log_sum_exp: [rows, heads], of the scaled
  /// scores.
  virtual void causal_attention(const CausalShape& shape, const Tensor& qkv,
                                const Tensor& attention_start, const Tensor& out,
                                const Tensor& log_sum_exp) = 0;
  /// d_qkv: [rows, 3 width].
  virtual void causal_attention_backward(const CausalShape& shape, const Tensor& qkv,
                                         const Tensor& attention_start, const Tensor& out,
                                         const Tensor& log_sum_exp, const Tensor& d_out,
                                         const Tensor& d_qkv) = 0;
  /// Node i attends to itself and its ancestors. parent: int32 [nodes], < own index, -1 at roots,
  /// preorder; paths of at most kMaxTrieDepth nodes. out: [nodes, width]; log_sum_exp: [nodes,
  /// heads].
  virtual void trie_attention(const TrieShape& shape, const Tensor& qkv, const Tensor& parent,
                              const Tensor& out, const Tensor& log_sum_exp) = 0;
  virtual void trie_attention_backward(const TrieShape& shape, const Tensor& qkv,
                                       const Tensor& parent, const Tensor& out,
                                       const Tensor& log_sum_exp, const Tensor& d_out,
                                       const Tensor& d_qkv) = 0;
  /// Appends k and v of `rows` new positions to keys_values [context, 2 width] at `past`, then
  /// position past + i attends to 0 .. past + i. out: [rows, width].
  virtual void cached_attention(const Tensor& qkv, const Tensor& keys_values, std::int64_t past,
                                std::int64_t heads, std::int64_t head_width, const Tensor& out,
                                std::int64_t rows) = 0;

  // Rows by index. source, target: [any, width], both fp32; index: int32 [count].
  /// target[i] = source[index[i]].
  virtual void gather_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                           std::int64_t count) = 0;
  /// target[index[i]] = source[i]; an index comes once.
  virtual void scatter_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                            std::int64_t count) = 0;
  /// target[index[i]] += source[i], in the order of i where an index comes several times.
  virtual void scatter_add_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                                std::int64_t count) = 0;

  // Embeddings.
  /// out[i] = source(i) + position_embedding[positions[i]], where source is
  /// rows[row_of_position[i]] (plus token_embedding[tokens[i]] with CombineKind::add), or
  /// token_embedding[tokens[i]] where there is no row. token_embedding: [vocabulary, width];
  /// position_embedding: [context, width] or empty; rows: fp32 [any, width].
  virtual void embed(const EmbeddingInput& input, const Tensor& token_embedding,
                     const Tensor& position_embedding, const Tensor& rows, const Tensor& out,
                     std::int64_t count) = 0;
  /// Adds to d_token_embedding, d_position_embedding (or empty) and d_rows.
  virtual void embed_backward(const EmbeddingInput& input, const Tensor& d_out,
                              const Tensor& d_token_embedding, const Tensor& d_position_embedding,
                              const Tensor& d_rows, std::int64_t count) = 0;

  /// losses[i] = -log softmax(logits[i])[targets[i]], 0 where targets[i] is -1. logits: [rows,
  /// any], of which the first `used` columns are classes and the rest padding; targets: int32
  /// [rows]; losses: [rows]. with_gradient: logits become gradient_scale * d losses[i] / d
  /// logits[i], padding 0.
  virtual void cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t used,
                             const Tensor& losses, bool with_gradient, float gradient_scale,
                             std::int64_t rows) = 0;

  // The same with the classes cut over ranks. logits: [rows, any], of which the first `used`
  // columns are classes first_class .. and the rest padding. targets: global class or -1.
  /// statistics: [rows, 3] = largest logit m, sum of exp(logit - m), logit of the target or 0 where
  /// the target is not of these classes. used = 0: m is the lowest float, the sum 0.
  virtual void cross_entropy_part(const Tensor& logits, const Tensor& targets,
                                  std::int64_t first_class, std::int64_t used,
                                  const Tensor& statistics, std::int64_t rows) = 0;
  /// all_statistics: [parts, rows, 3], from every rank in order; losses and logits as by
  /// cross_entropy (padding's gradient is 0).
  virtual void cross_entropy_join(const Tensor& logits, const Tensor& targets,
                                  std::int64_t first_class, std::int64_t used,
                                  const Tensor& all_statistics, std::int64_t parts,
                                  const Tensor& losses, bool with_gradient, float gradient_scale,
                                  std::int64_t rows) = 0;

  // The optimizer's operations, fp32.
  /// Updates all ranges.
  virtual void adamw(const AdamwTensors& tensors, std::span<const AdamwRange> ranges,
                     const AdamwStep& step) = 0;
  /// Of all of them together; in double, in an order fixed by their numbers of elements.
  virtual double squared_norm(std::span<const Tensor> parts) = 0;
  virtual double sum(const Tensor& x) = 0;
};

/// The CPU backend. One object for the process,
/// made for the best instruction set of the processor, at most that which the environment variable
/// SCONE_MAX_ISA names: sse4, avx2, avx512 or avx512_bf16, on arm64 neon alone. The first call
/// throws InputError where it names another, or less than all is compiled for (SCONE_NATIVE).
Backend& cpu_backend();
/// The instruction set of cpu_backend(), by the same names.
std::string cpu_instruction_set();

}  // namespace scone
