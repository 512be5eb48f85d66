#include <algorithm>

#include "model/ops/cpu/element.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/linear.cpp"
#include <hwy/foreach_target.h>

#include "model/ops/cpu/cpu_backend.h"
#include "model/ops/cpu/gelu.h"
#include "model/ops/cpu/matrix_product.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
namespace {

// What is done with a tile of a product. Outputs are `width` wide.

template <class T>
struct StoreLinear {
  T* y;
  const T *bias, *residual;
  std::int64_t width;
  void operator()(const ProductTile& tile) const {
    for (std::int64_t i = 0; i < tile.rows; ++i) {
      const float* from = tile.values + i * tile.stride;
      const std::int64_t at = (tile.row + i) * width + tile.column;
      const T* b = bias == nullptr ? nullptr : bias + tile.column;
      if (bias != nullptr && residual != nullptr) {
#pragma omp simd
        for (std::int64_t j = 0; j < tile.columns; ++j)
          y[at + j] = from_float<T>(from[j] + to_float(b[j]) + to_float(residual[at + j]));
      } else if (bias != nullptr) {
#pragma omp simd
        for (std::int64_t j = 0; j < tile.columns; ++j)
          y[at + j] = from_float<T>(from[j] + to_float(b[j]));
      } else if (residual != nullptr) {
#pragma omp simd
        for (std::int64_t j = 0; j < tile.columns; ++j)
          y[at + j] = from_float<T>(from[j] + to_float(residual[at + j]));
      } else {
#pragma omp simd
        for (std::int64_t j = 0; j < tile.columns; ++j) y[at + j] = from_float<T>(from[j]);
      }
    }
  }
};

template <class T>
struct StoreGelu {
  T *pre, *y;
  const T* bias;
  std::int64_t width;
  void operator()(const ProductTile& tile) const {
    for (std::int64_t i = 0; i < tile.rows; ++i) {
      const float* from = tile.values + i * tile.stride;
      const std::int64_t at = (tile.row + i) * width + tile.column;
      const T* b = bias == nullptr ? nullptr : bias + tile.column;
      if (bias != nullptr) {
#pragma omp simd
        for (std::int64_t j = 0; j < tile.columns; ++j)
          pre[at + j] = from_float<T>(from[j] + to_float(b[j]));
      } else {
#pragma omp simd
        for (std::int64_t j = 0; j < tile.columns; ++j) pre[at + j] = from_float<T>(from[j]);
      }
#pragma omp simd
      for (std::int64_t j = 0; j < tile.columns; ++j)
        y[at + j] = from_float<T>(gelu_of(to_float(pre[at + j])));
    }
  }
};

template <class T>
struct StoreGeluBackward {
  T* d_pre;
  const T* pre;
  std::int64_t width;
  void operator()(const ProductTile& tile) const {
    for (std::int64_t i = 0; i < tile.rows; ++i) {
      const float* from = tile.values + i * tile.stride;
      const std::int64_t at = (tile.row + i) * width + tile.column;
#pragma omp simd
      for (std::int64_t j = 0; j < tile.columns; ++j)
        d_pre[at + j] = from_float<T>(from[j] * gelu_slope(to_float(pre[at + j])));
    }
  }
};

/// Adds to floats: matrix_product does it, where it can.
struct AddSums {
  float* y;
  std::int64_t width;
  float* sums(std::int64_t row, std::int64_t column) const { return y + row * width + column; }
  std::int64_t sums_stride() const { return width; }
  void operator()(const ProductTile& tile) const {
    for (std::int64_t i = 0; i < tile.rows; ++i) {
      const float* from = tile.values + i * tile.stride;
      float* to = sums(tile.row + i, tile.column);
#pragma omp simd
      for (std::int64_t j = 0; j < tile.columns; ++j) to[j] += from[j];
    }
  }
};

template <class T>
struct Add {
  T* y;
  std::int64_t width;
  void operator()(const ProductTile& tile) const {
    for (std::int64_t i = 0; i < tile.rows; ++i) {
      const float* from = tile.values + i * tile.stride;
      T* to = y + (tile.row + i) * width + tile.column;
#pragma omp simd
      for (std::int64_t j = 0; j < tile.columns; ++j)
        to[j] = from_float<T>(to_float(to[j]) + from[j]);
    }
  }
};

/// store takes x W^T.
template <class T, class Store>
void forward_product(const Tensor& x, const Tensor& weight, std::int64_t rows, const Store& store) {
  const std::int64_t out = weight.dim(0), in = weight.dim(1);
  matrix_product(Factor<T>{x.data<T>(), in, false}, Factor<T>{weight.data<T>(), in, true}, rows,
                 out, in, store);
}

/// store takes d_y W.
template <class T, class Store>
void backward_product(const Tensor& d_y, const Tensor& weight, std::int64_t rows,
                      const Store& store) {
  const std::int64_t out = weight.dim(0), in = weight.dim(1);
  matrix_product(Factor<T>{d_y.data<T>(), out, false}, Factor<T>{weight.data<T>(), in, false}, rows,
                 in, out, store);
}

template <class T>
void linear_of(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& residual,
               const Tensor& y, std::int64_t rows) {
  forward_product<T>(
      x, weight, rows,
      StoreLinear<T>{y.data<T>(), bias.data<T>(), residual.data<T>(), weight.dim(0)});
}

template <class T>
void backward_input_of(const Tensor& d_y, const Tensor& weight, const Tensor& d_x, bool accumulate,
                       std::int64_t rows) {
  const std::int64_t in = weight.dim(1);
  if (accumulate)
    backward_product<T>(d_y, weight, rows, Add<T>{d_x.data<T>(), in});
  else
    backward_product<T>(d_y, weight, rows, StoreLinear<T>{d_x.data<T>(), nullptr, nullptr, in});
}

/// sums += the column sums of d_y: [rows, out].
template <class T>
void add_column_sums(const T* d_y, std::int64_t out, float* sums, std::int64_t rows) {
  constexpr std::int64_t kColumns = 64;
#pragma omp parallel for schedule(static)
  for (std::int64_t block = 0; block < blocks_of(out, kColumns); ++block) {
    const std::int64_t begin = block * kColumns, n = std::min(kColumns, out - begin);
    float own[kColumns] = {};
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* row = d_y + i * out + begin;
#pragma omp simd
      for (std::int64_t j = 0; j < n; ++j) own[j] += to_float(row[j]);
    }
    for (std::int64_t j = 0; j < n; ++j) sums[begin + j] += own[j];
  }
}

template <class T>
void backward_weight_of(const Tensor& d_y, const Tensor& x, const Tensor& d_weight,
                        const Tensor& d_bias, std::int64_t rows) {
  const std::int64_t out = d_weight.dim(0), in = d_weight.dim(1);
  matrix_product(Factor<T>{d_y.data<T>(), out, true}, Factor<T>{x.data<T>(), in, false}, out, in,
                 rows, AddSums{d_weight.data<float>(), in});
  if (!d_bias.empty()) add_column_sums(d_y.data<T>(), out, d_bias.data<float>(), rows);
}

}  // namespace

void CpuBackend::linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& residual, const Tensor& y, std::int64_t rows) {
  (is_bf16(x) ? linear_of<Bf16> : linear_of<float>)(x, weight, bias, residual, y, rows);
}

void CpuBackend::linear_backward_input(const Tensor& d_y, const Tensor& weight, const Tensor& d_x,
                                       bool accumulate, std::int64_t rows) {
  (is_bf16(d_y) ? backward_input_of<Bf16> : backward_input_of<float>)(d_y, weight, d_x, accumulate,
                                                                      rows);
}

void CpuBackend::linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                             const Tensor& pre, const Tensor& y, std::int64_t rows) {
  const std::int64_t out = weight.dim(0);
  if (is_bf16(x))
    forward_product<Bf16>(
        x, weight, rows, StoreGelu<Bf16>{pre.data<Bf16>(), y.data<Bf16>(), bias.data<Bf16>(), out});
  else
    forward_product<float>(
        x, weight, rows,
        StoreGelu<float>{pre.data<float>(), y.data<float>(), bias.data<float>(), out});
}

void CpuBackend::linear_gelu_backward_input(const Tensor& d_y, const Tensor& weight,
                                            const Tensor& pre, const Tensor& d_pre,
                                            std::int64_t rows) {
  const std::int64_t in = weight.dim(1);
  if (is_bf16(d_y))
    backward_product<Bf16>(d_y, weight, rows,
                           StoreGeluBackward<Bf16>{d_pre.data<Bf16>(), pre.data<Bf16>(), in});
  else
    backward_product<float>(d_y, weight, rows,
                            StoreGeluBackward<float>{d_pre.data<float>(), pre.data<float>(), in});
}

void CpuBackend::linear_backward_weight(const Tensor& d_y, const Tensor& x, const Tensor& d_weight,
                                        const Tensor& d_bias, std::int64_t rows) {
  if (rows == 0) return;
  (is_bf16(x) ? backward_weight_of<Bf16> : backward_weight_of<float>)(d_y, x, d_weight, d_bias,
                                                                      rows);
}

}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
