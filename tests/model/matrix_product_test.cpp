// Linear layers on the processor beyond the sizes of the operation registry: several tiles, parts
// and ends of each loop of a matrix product.

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "model/parameter.h"
#include "op_cases.h"
#include "worst_error.h"

namespace scone {
namespace {

struct ProductSize {
  std::int64_t rows, in, out;
};

void PrintTo(const ProductSize& size, std::ostream* out) {
  *out << size.rows << " rows, " << size.in << " to " << size.out;
}

/// Elements of one row of a product: sum over k of a(k) b(k, column), in double.
template <class A, class B>
Doubles row_of_product(std::int64_t columns, std::int64_t inner, const A& a, const B& b) {
  Doubles sums(static_cast<std::size_t>(columns), 0.0);
  for (std::int64_t k = 0; k < inner; ++k) {
    const double factor = a(k);
    for (std::int64_t j = 0; j < columns; ++j)
      sums[static_cast<std::size_t>(j)] += factor * b(k, j);
  }
  return sums;
}

class MatrixProductTest : public ::testing::TestWithParam<std::tuple<ProductSize, DType>> {
 protected:
  Backend& backend_ = cpu_backend();
  ProductSize size_ = std::get<0>(GetParam());
  DType dtype_ = std::get<1>(GetParam());
  double worst_ = 0;

  Tensor normal(const Shape& shape, std::uint64_t seed) const {
    const Tensor tensor = Tensor::zeros(shape, dtype_);
    std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
    counter_normal(seed, "product", 0, values);
    backend_.upload(values, tensor);
    return tensor;
  }

  /// Compares a row of a product with its exact values; `inner`: products summed, of unit variance.
  void expect_row(const std::vector<float>& found, std::int64_t row, const Doubles& exact,
                  std::int64_t inner, DType of_output) {
    const double deviation = std::sqrt(static_cast<double>(inner));
    const double rounding = std::numeric_limits<float>::epsilon() * static_cast<double>(inner);
    const auto columns = std::ssize(exact);
    for (std::int64_t j = 0; j < columns; ++j) {
      const double expected = exact[static_cast<std::size_t>(j)];
      const double allowed =
          deviation * rounding + (of_output == DType::bf16 ? 0x1p-8 * std::abs(expected) : 0.0);
      const double error = std::abs(found[static_cast<std::size_t>(row * columns + j)] - expected);
      ASSERT_LE(error, allowed) << "row " << row << " column " << j << " of " << columns;
      worst_ = worse(worst_, error / allowed);
    }
  }

  /// Rows at the ends of tiles and parts.
  static std::vector<std::int64_t> some_rows(std::int64_t rows) {
    std::vector<std::int64_t> some;
    for (const std::int64_t row : {0L, 1L, 127L, 128L, 2047L, 2048L, rows / 2, rows - 1})
      if (row < rows) some.push_back(row);
    return some;
  }
};

TEST_P(MatrixProductTest, AgreesWithDoubleSums) {
  const auto [rows, in, out] = size_;
  const Tensor x = normal({rows, in}, 1), weight = normal({out, in}, 2),
               d_y = normal({rows, out}, 3);
  const std::vector<float> x_of = values_of(backend_, x), w_of = values_of(backend_, weight),
                           dy_of = values_of(backend_, d_y);
  const auto at = [](const std::vector<float>& values, std::int64_t width, std::int64_t row,
                     std::int64_t column) {
    return static_cast<double>(values[static_cast<std::size_t>(row * width + column)]);
  };

  const Tensor y = Tensor::zeros({rows, out}, dtype_);
  backend_.linear(x, weight, {}, {}, y, rows);
  const std::vector<float> y_of = values_of(backend_, y);
  for (const std::int64_t i : some_rows(rows))
    expect_row(y_of, i,
               row_of_product(
                   out, in, [&](std::int64_t k) { return at(x_of, in, i, k); },
                   [&](std::int64_t k, std::int64_t j) { return at(w_of, in, j, k); }),
               in, dtype_);

  const Tensor d_x = Tensor::zeros({rows, in}, dtype_);
  backend_.linear_backward_input(d_y, weight, d_x, false, rows);
  const std::vector<float> dx_of = values_of(backend_, d_x);
  for (const std::int64_t i : some_rows(rows))
    expect_row(dx_of, i,
               row_of_product(
                   in, out, [&](std::int64_t k) { return at(dy_of, out, i, k); },
                   [&](std::int64_t k, std::int64_t j) { return at(w_of, in, k, j); }),
               out, dtype_);

  const Tensor d_weight = Tensor::zeros({out, in});
  backend_.linear_backward_weight(d_y, x, d_weight, {}, rows);
  const std::vector<float> dw_of = values_of(backend_, d_weight);
  for (const std::int64_t i : some_rows(out))
    expect_row(dw_of, i,
               row_of_product(
                   in, rows, [&](std::int64_t k) { return at(dy_of, out, k, i); },
                   [&](std::int64_t k, std::int64_t j) { return at(x_of, in, k, j); }),
               rows, DType::fp32);
  std::printf("%s: largest error %.3f of what is allowed\n", name_of(dtype_), worst_);
}

class ProductThreadsTest : public MatrixProductTest {};

/// Tiles are chosen by the number of threads, an element's sum is not.
TEST_P(ProductThreadsTest, DoNotChangeABit) {
  const auto [rows, in, out] = size_;
  const Tensor x = normal({rows, in}, 1), weight = normal({out, in}, 2),
               d_y = normal({rows, out}, 3);
  const int threads_before = omp_get_max_threads();
  std::vector<std::vector<float>> first;
  for (const int threads : {1, 2, 5}) {
    omp_set_num_threads(threads);
    const Tensor y = Tensor::zeros({rows, out}, dtype_), d_x = Tensor::zeros({rows, in}, dtype_),
                 d_weight = Tensor::zeros({out, in});
    backend_.linear(x, weight, {}, {}, y, rows);
    backend_.linear_backward_input(d_y, weight, d_x, false, rows);
    backend_.linear_backward_weight(d_y, x, d_weight, {}, rows);
    std::vector<std::vector<float>> found = {values_of(backend_, y), values_of(backend_, d_x),
                                             values_of(backend_, d_weight)};
    if (first.empty())
      first = std::move(found);
    else
      EXPECT_TRUE(found == first) << threads << " threads";
  }
  omp_set_num_threads(threads_before);
}

std::string name_of_case(const ::testing::TestParamInfo<std::tuple<ProductSize, DType>>& instance) {
  const ProductSize size = std::get<0>(instance.param);
  return std::to_string(size.rows) + "_" + std::to_string(size.in) + "_" +
         std::to_string(size.out) + "_" + name_of(std::get<1>(instance.param));
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, MatrixProductTest,
    ::testing::Combine(::testing::Values(ProductSize{1, 1, 1}, ProductSize{1, 300, 65},
                                         ProductSize{15, 33, 1}, ProductSize{130, 64, 384},
                                         ProductSize{129, 385, 63}, ProductSize{2049, 72, 1601},
                                         ProductSize{5003, 31, 150}, ProductSize{40, 9001, 100},
                                         ProductSize{2049, 4097, 521}, ProductSize{260, 100, 9000}),
                       ::testing::Values(DType::fp32, DType::bf16)),
    name_of_case);

INSTANTIATE_TEST_SUITE_P(Sizes, ProductThreadsTest,
                         ::testing::Combine(::testing::Values(ProductSize{131, 257, 97},
                                                              ProductSize{600, 65, 400},
                                                              ProductSize{20, 4500, 129}),
                                            ::testing::Values(DType::fp32, DType::bf16)),
                         name_of_case);

}  // namespace
}  // namespace scone
