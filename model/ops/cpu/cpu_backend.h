// Compiled for each instruction set.
#if defined(SCONE_MODEL_OPS_CPU_CPU_BACKEND_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCONE_MODEL_OPS_CPU_CPU_BACKEND_H
#undef SCONE_MODEL_OPS_CPU_CPU_BACKEND_H
#else
#define SCONE_MODEL_OPS_CPU_CPU_BACKEND_H
#endif

#include <hwy/highway.h>

#include "model/ops/ops.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {

/// Backend on the processor; each family of operations has a file of its own in this folder. Loops
/// are cut into blocks of fixed size, so that sums do not depend on the number of threads.
///
/// The whole class exists once for each instruction set that the program is built for, in a
/// namespace of its own: Highway's foreach_target.h reads each of these files again for each, and
/// cpu_backend() chooses at run time. Loops are plain C++, which the compiler vectorises for each
/// set. Two rules follow: standard headers come before foreach_target.h, and a lambda takes
/// HWY_ATTR, because it does not inherit what HWY_BEFORE_NAMESPACE sets.
class CpuBackend final : public Backend {
 public:
  Device device() const override { return Device::cpu; }
  void upload(std::span<const std::int32_t> source, const Tensor& target) override;
  void upload(std::span<const float> source, const Tensor& target) override;
  void download(const Tensor& source, std::span<float> target) override;
  void copy(const Tensor& source, const Tensor& target) override;
  void zero(const Tensor& target) override;
  void synchronize() override {}
  void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& residual,
              const Tensor& y, std::int64_t rows) override;
  void linear_backward_input(const Tensor& d_y, const Tensor& weight, const Tensor& d_x,
                             bool accumulate, std::int64_t rows) override;
  void linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& pre,
                   const Tensor& y, std::int64_t rows) override;
  void linear_gelu_backward_input(const Tensor& d_y, const Tensor& weight, const Tensor& pre,
                                  const Tensor& d_pre, std::int64_t rows) override;
  void linear_backward_weight(const Tensor& d_y, const Tensor& x, const Tensor& d_weight,
                              const Tensor& d_bias, std::int64_t rows) override;
  void norm(NormKind kind, const Tensor& x, const Tensor& gain, const Tensor& bias, const Tensor& y,
            const Tensor& statistics, std::int64_t rows) override;
  void norm_backward(NormKind kind, const Tensor& d_y, const Tensor& x, const Tensor& gain,
                     const Tensor& statistics, const Tensor& d_x, bool accumulate,
                     const Tensor& d_gain, const Tensor& d_bias, std::int64_t rows) override;
  void gelu(const Tensor& x, const Tensor& y, std::int64_t elements) override;
  void gelu_backward(const Tensor& d_y, const Tensor& x, const Tensor& d_x,
                     std::int64_t elements) override;
  void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y,
              std::int64_t elements) override;
  void swiglu_backward(const Tensor& d_y, const Tensor& gate, const Tensor& up,
                       const Tensor& d_gate, const Tensor& d_up, std::int64_t elements) override;
  void rope(const Tensor& qkv, const Tensor& positions, std::int64_t heads, std::int64_t head_width,
            bool inverse, std::int64_t rows) override;
  void causal_attention(const CausalShape& shape, const Tensor& qkv, const Tensor& attention_start,
                        const Tensor& out, const Tensor& log_sum_exp) override;
  void causal_attention_backward(const CausalShape& shape, const Tensor& qkv,
                                 const Tensor& attention_start, const Tensor& out,
                                 const Tensor& log_sum_exp, const Tensor& d_out,
                                 const Tensor& d_qkv) override;
  void trie_attention(const TrieShape& shape, const Tensor& qkv, const Tensor& parent,
                      const Tensor& out, const Tensor& log_sum_exp) override;
  void trie_attention_backward(const TrieShape& shape, const Tensor& qkv, const Tensor& parent,
                               const Tensor& out, const Tensor& log_sum_exp, const Tensor& d_out,
                               const Tensor& d_qkv) override;
  void cached_attention(const Tensor& qkv, const Tensor& keys_values, std::int64_t past,
                        std::int64_t heads, std::int64_t head_width, const Tensor& out,
                        std::int64_t rows) override;
  void gather_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                   std::int64_t count) override;
  void scatter_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                    std::int64_t count) override;
  void scatter_add_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                        std::int64_t count) override;
  void embed(const EmbeddingInput& input, const Tensor& token_embedding,
             const Tensor& position_embedding, const Tensor& rows, const Tensor& out,
             std::int64_t count) override;
  void embed_backward(const EmbeddingInput& input, const Tensor& d_out,
                      const Tensor& d_token_embedding, const Tensor& d_position_embedding,
                      const Tensor& d_rows, std::int64_t count) override;
  void cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t used,
                     const Tensor& losses, bool with_gradient, float gradient_scale,
                     std::int64_t rows) override;
  void cross_entropy_part(const Tensor& logits, const Tensor& targets, std::int64_t first_class,
                          std::int64_t used, const Tensor& statistics, std::int64_t rows) override;
  void cross_entropy_join(const Tensor& logits, const Tensor& targets, std::int64_t first_class,
                          std::int64_t used, const Tensor& all_statistics, std::int64_t parts,
                          const Tensor& losses, bool with_gradient, float gradient_scale,
                          std::int64_t rows) override;
  void adamw(const AdamwTensors& tensors, std::span<const AdamwRange> ranges,
             const AdamwStep& step) override;
  double squared_norm(std::span<const Tensor> parts) override;
  double sum(const Tensor& x) override;
};

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
