#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace scone::cuda {

struct MatrixProductOptions {
  bool tf32 = false;  // fp32 products on tensor cores, with inputs of 10 bits' mantissa
  // gelu and its gradient in the product's epilogue. Off: own kernels after the product.
  bool fuse_gelu = true;
  // The bias gradient with the weight gradient's product. Off: an own kernel sums the columns.
  bool fuse_bias_gradient = true;

  friend bool operator==(const MatrixProductOptions&, const MatrixProductOptions&) = default;
};

/// The products of linear layers, row-major: weight [out, in], x [rows, in], y [rows, out]. T:
/// float, or __nv_bfloat16 with sums, bias, residual and gelu in fp32 and one rounding at the end.
/// The algorithm of a shape is chosen once, by cuBLASLt's heuristic, never by a race, so that runs
/// repeat bit by bit on one kind of device. A shape for which cuBLASLt offers no algorithm with the
/// epilogue is computed by the plain product and own kernels. All work is put on `stream` of the
/// constructor. Any thread may use it. Throws CudaError.
class MatrixProduct {
 public:
  MatrixProduct(cudaStream_t stream, const MatrixProductOptions& options);
  ~MatrixProduct();

  /// y = x W^T + bias + residual; bias, residual may be null; residual may be y.
  template <class T>
  void linear(const T* x, const T* weight, const T* bias, const T* residual, T* y,
              std::int64_t rows, std::int64_t in, std::int64_t out);
  /// pre = x W^T + bias, y = gelu(pre).
  template <class T>
  void linear_gelu(const T* x, const T* weight, const T* bias, T* pre, T* y, std::int64_t rows,
                   std::int64_t in, std::int64_t out);
  /// d_x (+)= d_y W.
  template <class T>
  void linear_backward_input(const T* d_y, const T* weight, T* d_x, bool accumulate,
                             std::int64_t rows, std::int64_t in, std::int64_t out);
  /// d_pre = (d_y W) * gelu'(pre). pre, d_pre: [rows, in].
  template <class T>
  void linear_gelu_backward_input(const T* d_y, const T* weight, const T* pre, T* d_pre,
                                  std::int64_t rows, std::int64_t in, std::int64_t out);
  /// d_weight += d_y^T x, d_bias += column sums of d_y; d_bias may be null.
  template <class T>
  void linear_backward_weight(const T* d_y, const T* x, float* d_weight, float* d_bias,
                              std::int64_t rows, std::int64_t in, std::int64_t out);

  /// The kinds of product that own kernels finish, so far, and why: "bf16 linear + gelu, in 21, out
  /// 84: cuBLASLt has no such algorithm". For the log.
  std::vector<std::string> unfused() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone::cuda
