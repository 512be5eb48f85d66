#include <dnnl.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/gemm.h"

namespace scone {
namespace {

// Tiles of the output; each is one single-threaded product, so results do not depend on the number
// of threads.
constexpr std::int64_t kTileRows = 128;
constexpr std::int64_t kTileColumns = 512;

std::int64_t blocks(std::int64_t extent, std::int64_t block) {
  return (extent + block - 1) / block;
}

}  // namespace

void gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
          float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
          float beta, float* c, std::int64_t ldc) {
  if (dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb,
                 beta, c, ldc) != dnnl_success) {
    throw std::runtime_error("oneDNN refused a matrix product");
  }
}

void CpuBackend::linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& residual, const Tensor& y, std::int64_t rows) {
  const std::int64_t out = weight.dim(0), in = weight.dim(1);
  const float* input = x.data<float>();
  const float* w = weight.data<float>();
  const float* b = bias.data<float>();
  const float* r = residual.data<float>();
  float* output = y.data<float>();
  const std::int64_t row_tiles = blocks(rows, kTileRows), column_tiles = blocks(out, kTileColumns);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile) {
    for (std::int64_t column_tile = 0; column_tile < column_tiles; ++column_tile) {
      const std::int64_t row = row_tile * kTileRows, column = column_tile * kTileColumns;
      const std::int64_t m = std::min(kTileRows, rows - row);
      const std::int64_t n = std::min(kTileColumns, out - column);
      const bool preset = b != nullptr || r != nullptr;
      for (std::int64_t i = 0; preset && i < m; ++i) {
        const std::int64_t at = (row + i) * out + column;
        if (r == nullptr) {
          std::memcpy(output + at, b + column, static_cast<std::size_t>(n) * sizeof(float));
        } else if (b == nullptr) {
          if (r != output) std::memcpy(output + at, r + at, static_cast<std::size_t>(n) * 4);
        } else {
          for (std::int64_t j = 0; j < n; ++j) output[at + j] = r[at + j] + b[column + j];
        }
      }
      gemm(false, true, m, n, in, 1.0F, input + row * in, in, w + column * in, in,
           preset ? 1.0F : 0.0F, output + row * out + column, out);
    }
  }
}

void CpuBackend::linear_backward_input(const Tensor& d_y, const Tensor& weight, const Tensor& d_x,
                                       bool accumulate, std::int64_t rows) {
  const std::int64_t out = weight.dim(0), in = weight.dim(1);
  const float* dy = d_y.data<float>();
  const float* w = weight.data<float>();
  float* dx = d_x.data<float>();
  const std::int64_t row_tiles = blocks(rows, kTileRows), column_tiles = blocks(in, kTileColumns);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile) {
    for (std::int64_t column_tile = 0; column_tile < column_tiles; ++column_tile) {
      const std::int64_t row = row_tile * kTileRows, column = column_tile * kTileColumns;
      gemm(false, false, std::min(kTileRows, rows - row), std::min(kTileColumns, in - column), out,
           1.0F, dy + row * out, out, w + column, in, accumulate ? 1.0F : 0.0F,
           dx + row * in + column, in);
    }
  }
}

void CpuBackend::linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                             const Tensor& pre, const Tensor& y, std::int64_t rows) {
  linear(x, weight, bias, {}, pre, rows);
  gelu(pre, y, rows * weight.dim(0));
}

void CpuBackend::linear_gelu_backward_input(const Tensor& d_y, const Tensor& weight,
                                            const Tensor& pre, const Tensor& d_pre,
                                            std::int64_t rows) {
  linear_backward_input(d_y, weight, d_pre, false, rows);
  gelu_backward(d_pre, pre, d_pre, rows * weight.dim(1));
}

void CpuBackend::linear_backward_weight(const Tensor& d_y, const Tensor& x, const Tensor& d_weight,
                                        const Tensor& d_bias, std::int64_t rows) {
  const std::int64_t out = d_weight.dim(0), in = d_weight.dim(1);
  const float* dy = d_y.data<float>();
  const float* input = x.data<float>();
  float* dw = d_weight.data<float>();
  float* db = d_bias.data<float>();
  if (rows == 0) return;
  const std::int64_t row_tiles = blocks(out, kTileRows), column_tiles = blocks(in, kTileColumns);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t row_tile = 0; row_tile < row_tiles; ++row_tile) {
    for (std::int64_t column_tile = 0; column_tile < column_tiles; ++column_tile) {
      const std::int64_t row = row_tile * kTileRows, column = column_tile * kTileColumns;
      gemm(true, false, std::min(kTileRows, out - row), std::min(kTileColumns, in - column), rows,
           1.0F, dy + row, out, input + column, in, 1.0F, dw + row * in + column, in);
    }
  }
  if (db == nullptr) return;
  constexpr std::int64_t kColumns = 64;
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < blocks(out, kColumns); ++block) {
    const std::int64_t begin = block * kColumns, n = std::min(kColumns, out - begin);
    float sums[kColumns] = {};
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* row = dy + i * out + begin;
#pragma omp simd
      for (std::int64_t j = 0; j < n; ++j) sums[j] += row[j];
    }
    for (std::int64_t j = 0; j < n; ++j) db[begin + j] += sums[j];
  }
}

}  // namespace scone
