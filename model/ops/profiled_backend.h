#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "model/ops/ops.h"

namespace scone {

/// Where the time of a run goes: how often and how long each operation ran, and when. Used by
/// several threads at once.
class OperationProfile {
 public:
  using Clock = std::chrono::steady_clock;

  /// Forgets what has been measured.
  void restart();
  /// Ends the measuring.
  void stop();
  /// An operation that ran from `begin` until now on the calling thread; flops: floating-point
  /// operations of its matrix products.
  void add(const std::string& name, Clock::time_point begin, double flops);
  /// One line an operation, the longest first, with its share of the time from restart() to stop(),
  /// its FLOP/s and their share of `peak` (FLOP/s of this rank); last what was spent outside of all
  /// operations.
  std::string table(double peak) const;
  /// Writes the first kMostEvents operations in Chrome's trace event format (chrome://tracing,
  /// Perfetto), rank as process. Throws InputError where the file cannot be written.
  void write_trace(const std::filesystem::path& file, int rank) const;

  static constexpr std::size_t kMostEvents = 200'000;

 private:
  struct Total {
    std::int64_t calls = 0;
    double seconds = 0, flops = 0;
  };
  struct Event {
    const std::string* name;  // a key of totals_
    double begin, seconds;    // since start_
  };

  mutable std::mutex mutex_;
  Clock::time_point start_ = Clock::now(), end_ = Clock::time_point::max();
  std::map<std::string, Total> totals_;
  std::vector<Event> events_;
};

/// Another backend's operations, timed. Each is waited for, which an accelerator would not do.
class ProfiledBackend final : public Backend {
 public:
  /// Both must outlive this.
  ProfiledBackend(Backend& backend, OperationProfile& profile)
      : backend_(backend), profile_(profile) {}

  Device device() const override { return backend_.device(); }
  void upload(std::span<const std::int32_t> source, const Tensor& target) override;
  void upload(std::span<const float> source, const Tensor& target) override;
  void download(const Tensor& source, std::span<float> target) override;
  void copy(const Tensor& source, const Tensor& target) override;
  void zero(const Tensor& target) override;
  void synchronize() override { backend_.synchronize(); }
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

 private:
  /// Runs and times an operation.
  template <class Run>
  auto timed(const std::string& name, double flops, Run run);

  Backend& backend_;
  OperationProfile& profile_;
};

}  // namespace scone
