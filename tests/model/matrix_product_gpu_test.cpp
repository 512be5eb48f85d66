// Products of linear layers at shapes, alignments and epilogues beyond the operation registry's,
// against the processor's backend on the same (rounded) numbers.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cuda_test.h"
#include "model/parameter.h"
#include "op_cases.h"
#include "worst_error.h"

#ifdef SCONE_CUDA_ON_HOST
#include <cublasLt.h>
#endif

namespace scone {
namespace {

struct ProductShape {
  std::int64_t rows, in, out;
  std::int64_t skipped = 0;  // leading elements that misalign each tensor
};

constexpr ProductShape kShapes[] = {
    {64, 32, 48}, {1, 8, 8},       {0, 16, 24},     {5, 21, 37},   {130, 72, 20},    {33, 40, 1},
    {7, 1, 16},   {16, 64, 24, 4}, {16, 64, 24, 1}, {9, 13, 5, 3}, {24, 16, 4096, 8}};

/// The same numbers on the device, in `dtype`, and on the processor, in fp32.
struct Pair {
  Tensor device, host;
};

class Products {
 public:
  Products(const ProductShape& shape, DType dtype, std::uint64_t seed)
      : shape_(shape), dtype_(dtype), seed_(seed) {}

  Pair random(Shape shape) { return make(std::move(shape), dtype_, ++stream_); }
  Pair random_fp32(Shape shape) { return make(std::move(shape), DType::fp32, ++stream_); }

  /// The largest difference over 1 + the largest value.
  double difference(const Pair& pair) const {
    const std::vector<float> found = values_of(test_cuda_backend(), pair.device);
    double worst = 0, largest = 1;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const double expected = pair.host.data<float>()[i];
      largest = std::max(largest, std::abs(expected));
      const double error = std::abs(found[i] - expected);
      worst = worse(worst, error);
    }
    return worst / largest;
  }

 private:
  Pair make(Shape shape, DType dtype, std::uint64_t stream) const {
    Tensor host = Tensor::zeros(shape);
    counter_normal(seed_, "product " + std::to_string(stream), 0, host.span<float>());
    const std::int64_t elements = host.elements();
    const Tensor device = Tensor::zeros({elements + shape_.skipped, 1}, dtype, Device::cuda)
                              .rows(shape_.skipped, elements)
                              .view(std::move(shape));
    test_cuda_backend().upload(host.span<float>(), device);
    test_cuda_backend().download(device, host.span<float>());  // as rounded
    return {device, host};
  }

  ProductShape shape_;
  DType dtype_;
  std::uint64_t seed_, stream_ = 0;
};

/// All five products, with and without what is optional.
void check_products(const ProductShape& shape, DType dtype) {
  SCOPED_TRACE(::testing::Message() << shape.rows << " x " << shape.in << " -> " << shape.out
                                    << ", skipped " << shape.skipped << ", " << name_of(dtype));
  const std::int64_t rows = shape.rows, in = shape.in, out = shape.out;
  Products products(shape, dtype, 5);
  Backend &device = test_cuda_backend(), &host = cpu_backend();
  const double reduction = static_cast<double>(std::max({rows, in, out}));
  const double exact = 1.2e-7 * (reduction + 8), allowed = dtype == DType::bf16 ? 0x1p-7 : exact;
  const Pair x = products.random({rows, in}), weight = products.random({out, in});
  const Pair bias = products.random({out}), residual = products.random({rows, out});
  const Pair d_y = products.random({rows, out});
  const Pair none;
  for (const Pair& b : {none, bias}) {
    for (const Pair& r : {none, residual}) {
      const Pair y = products.random({rows, out});
      device.linear(x.device, weight.device, b.device, r.device, y.device, rows);
      host.linear(x.host, weight.host, b.host, r.host, y.host, rows);
      EXPECT_LT(products.difference(y), allowed);
    }
    const Pair pre = products.random({rows, out}), y = products.random({rows, out});
    device.linear_gelu(x.device, weight.device, b.device, pre.device, y.device, rows);
    host.linear_gelu(x.host, weight.host, b.host, pre.host, y.host, rows);
    EXPECT_LT(products.difference(pre), allowed);
    EXPECT_LT(products.difference(y), allowed);
  }
  device.linear(x.device, weight.device, bias.device, residual.device, residual.device, rows);
  host.linear(x.host, weight.host, bias.host, residual.host, residual.host, rows);
  EXPECT_LT(products.difference(residual), allowed) << "in place";
  const Pair d_x = products.random({rows, in}), d_pre = products.random({rows, in});
  for (const bool accumulate : {false, true}) {
    device.linear_backward_input(d_y.device, weight.device, d_x.device, accumulate, rows);
    host.linear_backward_input(d_y.host, weight.host, d_x.host, accumulate, rows);
    EXPECT_LT(products.difference(d_x), allowed) << accumulate;
  }
  device.linear_gelu_backward_input(d_y.device, weight.device, x.device, d_pre.device, rows);
  host.linear_gelu_backward_input(d_y.host, weight.host, x.host, d_pre.host, rows);
  EXPECT_LT(products.difference(d_pre), allowed);
  const Pair d_weight = products.random_fp32({out, in}), d_bias = products.random_fp32({out});
  for (int again = 0; again < 2; ++again) {  // added to
    device.linear_backward_weight(d_y.device, x.device, d_weight.device, d_bias.device, rows);
    host.linear_backward_weight(d_y.host, x.host, d_weight.host, d_bias.host, rows);
  }
  device.linear_backward_weight(d_y.device, x.device, d_weight.device, {}, rows);
  host.linear_backward_weight(d_y.host, x.host, d_weight.host, {}, rows);
  EXPECT_LT(products.difference(d_weight), 2 * exact);
  EXPECT_LT(products.difference(d_bias), 2 * exact);
}

void check_all() {
  for (const ProductShape& shape : kShapes) {
    check_products(shape, DType::fp32);
    check_products(shape, DType::bf16);
  }
}

TEST(MatrixProduct, AgreesWithTheProcessorAtOddShapesAndAlignments) { check_all(); }

TEST(MatrixProduct, TakesABiasThatIsLessAlignedThanTheRest) {
  const ProductShape shape{6, 80, 32};
  Products products(shape, DType::bf16, 6);
  const Pair x = products.random({6, 80}), weight = products.random({32, 80});
  const Pair biases = products.random({40, 1}), y = products.random({6, 32});
  for (const std::int64_t skipped : {0, 8, 1}) {
    test_cuda_backend().linear(x.device, weight.device, biases.device.rows(skipped, 32), {},
                               y.device, 6);
    cpu_backend().linear(x.host, weight.host, biases.host.rows(skipped, 32), {}, y.host, 6);
    EXPECT_LT(products.difference(y), 0x1p-7) << skipped;
  }
}

TEST(MatrixProduct, SaysWhichProductsAreNotFused) {
  check_products({8, 21, 37}, DType::bf16);
  const std::vector<std::string> lines = test_cuda_backend().unfused();
  const auto has = [&](const std::string& line) {
    return std::find(lines.begin(), lines.end(), line) != lines.end();
  };
  EXPECT_TRUE(has("bf16 linear + gelu, in 21, out 37: cuBLASLt wants a multiple of 8"));
  EXPECT_TRUE(has("bf16 gelu gradient, in 21, out 37: cuBLASLt wants a multiple of 8"));
  for (const std::string& line : lines) std::printf("%s\n", line.c_str());
}

TEST(MatrixProduct, RefusesTensorsOfOtherTypesDevicesAndSizes) {
  CudaBackend& backend = test_cuda_backend();
  const auto make = [](Shape shape, DType dtype, Device device = Device::cuda) {
    return Tensor::zeros(std::move(shape), dtype, device);
  };
  const Tensor x = make({4, 8}, DType::fp32), weight = make({16, 8}, DType::fp32);
  const Tensor y = make({4, 16}, DType::fp32);
  backend.linear(x, weight, {}, {}, y, 4);
  EXPECT_THROW(backend.linear(x, make({16, 8}, DType::bf16), {}, {}, y, 4), std::logic_error);
  EXPECT_THROW(backend.linear(make({4, 8}, DType::fp32, Device::cpu), weight, {}, {}, y, 4),
               std::logic_error);
  EXPECT_THROW(backend.linear(x, weight, {}, {}, y, 5), std::logic_error);
  EXPECT_THROW(backend.linear(x, weight, make({15}, DType::fp32), {}, y, 4), std::logic_error);
  EXPECT_THROW(backend.linear(x, weight, {}, {}, make({4, 16}, DType::bf16), 4), std::logic_error);
}

#ifdef SCONE_CUDA_ON_HOST

TEST(MatrixProduct, AsksTheHeuristicOnceForAShape) {
  check_products({48, 56, 88}, DType::bf16);
  const std::int64_t calls = cuda_on_host::heuristic_calls();
  check_products({48, 56, 88}, DType::bf16);
  EXPECT_EQ(cuda_on_host::heuristic_calls(), calls);
  check_products({49, 56, 88}, DType::bf16);
  EXPECT_GT(cuda_on_host::heuristic_calls(), calls);
}

TEST(MatrixProduct, FinishesWithOwnKernelsWhatCublasDoesNotFuse) {
  struct Refusal {
    std::vector<cublasLtEpilogue_t> epilogues = {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU_AUX,
                                                 CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
                                                 CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_BGRADB};
    Refusal() { set(true); }
    ~Refusal() { set(false); }
    void set(bool refuse) const {
      for (const auto epilogue : epilogues) cuda_on_host::refuse_epilogue(epilogue, refuse);
    }
  } const refusal;
  // Shapes that no other test has, as choices are kept.
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    check_products({18, 48, 120}, dtype);
    check_products({11, 22, 35, 1}, dtype);
  }
  const std::vector<std::string> lines = test_cuda_backend().unfused();
  for (const char* type : {"fp32", "bf16"}) {
    for (const char* what : {"linear + bias", "linear + gelu", "gelu gradient", "bias gradient"}) {
      const std::string line =
          std::string(type) + " " + what + ", in 48, out 120: cuBLASLt has no such algorithm";
      EXPECT_TRUE(std::find(lines.begin(), lines.end(), line) != lines.end()) << line;
    }
  }
}

TEST(MatrixProduct, ThrowsWhereThereIsNoAlgorithmAtAll) {
  cuda_on_host::refuse_epilogue(CUBLASLT_EPILOGUE_DEFAULT, true);
  const Tensor x = Tensor::zeros({3, 26}, DType::bf16, Device::cuda);
  const Tensor weight = Tensor::zeros({50, 26}, DType::bf16, Device::cuda);
  const Tensor y = Tensor::zeros({3, 50}, DType::bf16, Device::cuda);
  EXPECT_THROW(test_cuda_backend().linear(x, weight, {}, {}, y, 3), CudaError);
  cuda_on_host::refuse_epilogue(CUBLASLT_EPILOGUE_DEFAULT, false);
}

#endif

}  // namespace
}  // namespace scone
