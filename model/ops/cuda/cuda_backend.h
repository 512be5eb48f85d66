#pragma once

#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

#include "model/ops/cuda/matrix_product.h"
#include "model/ops/ops.h"
#include "parallel/cuda/device.h"
#include "parallel/cuda/transfer.h"

namespace scone {

/// Backend on the process's CUDA device: cuBLASLt for matrix products, own kernels for the rest,
/// all on the device's compute stream. Methods return when their work is enqueued, but for
/// download, synchronize and what returns a number. A tensor of another device or type than an
/// operation takes, or with fewer elements than it reads or writes, is std::logic_error; a failed
/// launch is CudaError.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const cuda::MatrixProductOptions& options);

  /// The kinds of matrix product that run without their fused epilogue, so far, for the log.
  std::vector<std::string> unfused() const { return products_.unfused(); }

  Device device() const override { return Device::cuda; }
  void upload(std::span<const std::int32_t> source, const Tensor& target) override;
  void upload(std::span<const float> source, const Tensor& target) override;
  void download(const Tensor& source, std::span<float> target) override;
  void copy(const Tensor& source, const Tensor& target) override;
  void zero(const Tensor& target) override;
  void synchronize() override;
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
  /// Device memory for one operation's own use, which later operations on the stream use again.
  /// Held by the calling thread until all of the operation's work is enqueued.
  struct Scratch {
    std::unique_lock<std::mutex> lock;
    std::byte* data;
  };
  Scratch scratch(std::int64_t bytes);
  /// The device is the calling thread's current one after this, as launches need.
  cudaStream_t stream() const {
    device_.make_current();
    return stream_;
  }

  CudaDevice& device_;
  cudaStream_t stream_;
  cuda::MatrixProduct products_;
  cuda::UploadRing uploads_;
  cuda::Downloader downloads_;
  std::mutex scratch_mutex_;
  cuda::DeviceBuffer scratch_;
};

/// The backend on the process's device, which open_cuda_device must have opened. Tensor::zeros
/// serves Device::cuda from then on. One object for the process: options hold for the first call,
/// later calls with others throw std::logic_error.
CudaBackend& open_cuda_backend(const cuda::MatrixProductOptions& options);
/// The same, opened with the default options where it is not open yet.
CudaBackend& cuda_backend();

}  // namespace scone
