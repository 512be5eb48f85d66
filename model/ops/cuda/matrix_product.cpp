#include "model/ops/cuda/matrix_product.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <type_traits>

#include "model/ops/cuda/activation.h"
#include "model/ops/cuda/elementwise.h"
#include "parallel/cuda/device.h"

namespace scone::cuda {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kMaxPlans = 4096;  // the f-gram model's numbers of nodes differ by step
constexpr std::uintptr_t kMaxAlignment = 256;
constexpr std::int64_t kAuxiliaryMultiple = 8;  // of the leading dimension of gelu's argument
constexpr std::int64_t kMaxBias = 1 << 18;      // elements of a fused bias gradient

// Why own kernels finish a product.
constexpr const char* kNoAlgorithm = "cuBLASLt has no such algorithm";
constexpr const char* kTurnedOff = "not wanted on this device";
constexpr const char* kOddWidth = "cuBLASLt wants a multiple of 8";

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw CudaError(fmt::format("{}: {} failed: {} ({})", error_place(), what,
                              cublasLtGetStatusString(status), cublasLtGetStatusName(status)));
}

template <class T>
constexpr cudaDataType_t data_type() {
  return std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;
}
template <class T>
constexpr const char* type_name() {
  return std::is_same_v<T, float> ? "fp32" : "bf16";
}

struct DestroyHandle {
  void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
};
struct DestroyDescription {
  void operator()(cublasLtMatmulDesc_t description) const {
    cublasLtMatmulDescDestroy(description);
  }
};
struct DestroyLayout {
  void operator()(cublasLtMatrixLayout_t layout) const { cublasLtMatrixLayoutDestroy(layout); }
};
struct DestroyPreference {
  void operator()(cublasLtMatmulPreference_t preference) const {
    cublasLtMatmulPreferenceDestroy(preference);
  }
};
template <class Pointer, class Destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Pointer>, Destroy>;
using Handle = Owned<cublasLtHandle_t, DestroyHandle>;
using Description = Owned<cublasLtMatmulDesc_t, DestroyDescription>;
using Layout = Owned<cublasLtMatrixLayout_t, DestroyLayout>;
using Preference = Owned<cublasLtMatmulPreference_t, DestroyPreference>;

/// d = op(a) op(b) + beta c, column-major as cuBLASLt has it: a row-major matrix is its transpose.
/// op(a): [m, k]; op(b): [k, n]; c, d: [m, n]; every leading dimension is the least there can be.
struct Kind {
  cudaDataType_t input = CUDA_R_32F, output = CUDA_R_32F;
  bool transpose_a = false, transpose_b = false, accumulate = false;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  std::int64_t m = 0, n = 0, k = 0;
  auto key() const {
    return std::tuple(input, output, transpose_a, transpose_b, accumulate, epilogue, m, n, k);
  }
};

struct Operands {
  const void *a = nullptr, *b = nullptr, *c = nullptr;
  void* d = nullptr;
  const void* bias = nullptr;  // read by BIAS, written by BGRADB
  const void* gelu_argument = nullptr;
};

struct Plan {
  Description description;
  Layout a, b, d;
  cublasLtMatmulAlgo_t algorithm{};
  bool exists = false;
};

std::uintptr_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer) | kMaxAlignment;
  return address & (~address + 1);
}

std::uintptr_t alignment_of(const Operands& operands) {
  return std::min({alignment_of(operands.a), alignment_of(operands.b), alignment_of(operands.c),
                   alignment_of(operands.d), alignment_of(operands.bias),
                   alignment_of(operands.gelu_argument)});
}

Layout make_layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type, static_cast<std::uint64_t>(rows),
                                   static_cast<std::uint64_t>(columns), rows),
        "cublasLtMatrixLayoutCreate");
  return Layout(layout);
}

template <class Value>
void set(const Description& description, cublasLtMatmulDescAttributes_t attribute, Value value) {
  check(cublasLtMatmulDescSetAttribute(description.get(), attribute, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute");
}
template <class Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         Value value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
        "cublasLtMatmulPreferenceSetAttribute");
}

void set_epilogue_pointers(const Plan& plan, const Operands& operands) {
  if (operands.bias != nullptr) {
    set(plan.description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias);
  }
  if (operands.gelu_argument != nullptr) {
    set(plan.description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, operands.gelu_argument);
  }
}

}  // namespace

struct MatrixProduct::State {
  State(cudaStream_t stream_of_all, const MatrixProductOptions& chosen)
      : stream(stream_of_all),
        options(chosen),
        // What NVIDIA recommends for Hopper, and for what was before.
        workspace(cuda_device().compute_capability() >= 90 ? 64 * kMiB : 32 * kMiB),
        bias_gradient(kMaxBias * sizeof(float)) {
    cublasLtHandle_t created = nullptr;
    check(cublasLtCreate(&created), "cublasLtCreate");
    handle.reset(created);
  }

  Plan make_plan(const Kind& kind, const Operands& operands, std::uintptr_t alignment) const;
  /// False, with nothing done, where there is no algorithm.
  bool multiply(const Kind& kind, const Operands& operands);
  /// The same where there must be one.
  void multiply_plain(const Kind& kind, const Operands& operands);
  void note_unfused(const char* type, const char* what, std::int64_t in, std::int64_t out,
                    const char* why);

  cudaStream_t stream;
  MatrixProductOptions options;
  DeviceBuffer workspace;
  DeviceBuffer bias_gradient;  // of BGRADB, which overwrites
  Handle handle;
  std::map<std::pair<decltype(Kind().key()), std::uintptr_t>, Plan> plans;
  std::set<std::string> unfused;
  // Held by each method until its work is enqueued: descriptions hold the pointers of one product,
  // and bias_gradient one sum. Recursive, as the unfused ways call other methods.
  mutable std::recursive_mutex mutex;
};

Plan MatrixProduct::State::make_plan(const Kind& kind, const Operands& operands,
                                     std::uintptr_t alignment) const {
  Plan plan;
  const cublasComputeType_t compute =
      options.tf32 && kind.input == CUDA_R_32F ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  cublasLtMatmulDesc_t description = nullptr;
  check(cublasLtMatmulDescCreate(&description, compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
  plan.description.reset(description);
  set(plan.description, CUBLASLT_MATMUL_DESC_TRANSA, kind.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.description, CUBLASLT_MATMUL_DESC_TRANSB, kind.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.description, CUBLASLT_MATMUL_DESC_EPILOGUE, kind.epilogue);
  if (operands.bias != nullptr) {
    set(plan.description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, kind.output);
  }
  if (operands.gelu_argument != nullptr) {
    set(plan.description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, kind.output);
    set(plan.description, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, kind.m);
  }
  set_epilogue_pointers(plan, operands);
  plan.a = kind.transpose_a ? make_layout(kind.input, kind.k, kind.m)
                            : make_layout(kind.input, kind.m, kind.k);
  plan.b = kind.transpose_b ? make_layout(kind.input, kind.n, kind.k)
                            : make_layout(kind.input, kind.k, kind.n);
  plan.d = make_layout(kind.output, kind.m, kind.n);

  cublasLtMatmulPreference_t created = nullptr;
  check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
  const Preference preference(created);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
      static_cast<std::uint64_t>(workspace.bytes()));
  // Partial sums are added in fp32, never in the output's bf16.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE |
                                 CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(preference, attribute, static_cast<std::uint32_t>(alignment));
  }
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle.get(), plan.description.get(), plan.a.get(), plan.b.get(), plan.d.get(), plan.d.get(),
      preference.get(), 1, &result, &found);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE) {
    check(status, "cublasLtMatmulAlgoGetHeuristic");
    plan.exists = found > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    plan.algorithm = result.algo;
  }
  return plan;
}

bool MatrixProduct::State::multiply(const Kind& kind, const Operands& operands) {
  const std::uintptr_t alignment = alignment_of(operands);
  const auto key = std::pair(kind.key(), alignment);
  auto found = plans.find(key);
  if (found == plans.end()) {
    if (plans.size() >= kMaxPlans) plans.clear();
    found = plans.emplace(key, make_plan(kind, operands, alignment)).first;
  }
  const Plan& plan = found->second;
  if (!plan.exists) return false;
  set_epilogue_pointers(plan, operands);
  const float alpha = 1.0F, beta = kind.accumulate ? 1.0F : 0.0F;
  const void* c = kind.accumulate ? operands.c : operands.d;
  cuda_device().make_current();
  const cublasStatus_t status =
      cublasLtMatmul(handle.get(), plan.description.get(), &alpha, operands.a, plan.a.get(),
                     operands.b, plan.b.get(), &beta, c, plan.d.get(), operands.d, plan.d.get(),
                     &plan.algorithm, workspace.data(), workspace.bytes(), stream);
  if (status != CUBLAS_STATUS_SUCCESS) {
    check(status, fmt::format("cublasLtMatmul of [{} x {}] [{} x {}], epilogue {}", kind.m, kind.k,
                              kind.k, kind.n, static_cast<int>(kind.epilogue))
                      .c_str());
  }
  return true;
}

void MatrixProduct::State::multiply_plain(const Kind& kind, const Operands& operands) {
  if (multiply(kind, operands)) return;
  throw CudaError(
      fmt::format("{}: cuBLASLt has no algorithm for the product [{} x {}] [{} x {}] "
                  "of {}, pointers aligned to {} bytes",
                  error_place(), kind.m, kind.k, kind.k, kind.n,
                  kind.input == CUDA_R_32F ? "fp32" : "bf16", alignment_of(operands)));
}

void MatrixProduct::State::note_unfused(const char* type, const char* what, std::int64_t in,
                                        std::int64_t out, const char* why) {
  unfused.insert(fmt::format("{} {}, in {}, out {}: {}", type, what, in, out, why));
}

MatrixProduct::MatrixProduct(cudaStream_t stream, const MatrixProductOptions& options)
    : state_(std::make_unique<State>(stream, options)) {}
MatrixProduct::~MatrixProduct() = default;

std::vector<std::string> MatrixProduct::unfused() const {
  const std::lock_guard lock(state_->mutex);
  return {state_->unfused.begin(), state_->unfused.end()};
}

template <class T>
void MatrixProduct::linear(const T* x, const T* weight, const T* bias, const T* residual, T* y,
                           std::int64_t rows, std::int64_t in, std::int64_t out) {
  if (rows == 0 || out == 0) return;
  const std::lock_guard lock(state_->mutex);
  Kind kind{data_type<T>(), data_type<T>(), true, false, residual != nullptr};
  kind.m = out, kind.n = rows, kind.k = in;
  Operands operands{weight, x, residual, y};
  if (bias != nullptr) {
    kind.epilogue = CUBLASLT_EPILOGUE_BIAS;
    operands.bias = bias;
    if (state_->multiply(kind, operands)) return;
    state_->note_unfused(type_name<T>(), "linear + bias", in, out, kNoAlgorithm);
    kind.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    operands.bias = nullptr;
  }
  state_->multiply_plain(kind, operands);
  if (bias != nullptr) add_bias(bias, y, rows, out, state_->stream);
}

template <class T>
void MatrixProduct::linear_gelu(const T* x, const T* weight, const T* bias, T* pre, T* y,
                                std::int64_t rows, std::int64_t in, std::int64_t out) {
  if (rows == 0 || out == 0) return;
  const std::lock_guard lock(state_->mutex);
  const char* why = kNoAlgorithm;
  if (!state_->options.fuse_gelu) {
    why = kTurnedOff;
  } else if (out % kAuxiliaryMultiple != 0) {
    why = kOddWidth;
  } else {
    Kind kind{data_type<T>(), data_type<T>(), true, false, false};
    kind.epilogue = bias == nullptr ? CUBLASLT_EPILOGUE_GELU_AUX : CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    kind.m = out, kind.n = rows, kind.k = in;
    if (state_->multiply(kind, {weight, x, nullptr, y, bias, pre})) return;
  }
  state_->note_unfused(type_name<T>(), "linear + gelu", in, out, why);
  linear<T>(x, weight, bias, nullptr, pre, rows, in, out);
  gelu(pre, y, rows * out, state_->stream);
}

template <class T>
void MatrixProduct::linear_backward_input(const T* d_y, const T* weight, T* d_x, bool accumulate,
                                          std::int64_t rows, std::int64_t in, std::int64_t out) {
  if (rows == 0 || in == 0) return;
  const std::lock_guard lock(state_->mutex);
  Kind kind{data_type<T>(), data_type<T>(), false, false, accumulate};
  kind.m = in, kind.n = rows, kind.k = out;
  state_->multiply_plain(kind, {weight, d_y, d_x, d_x});
}

template <class T>
void MatrixProduct::linear_gelu_backward_input(const T* d_y, const T* weight, const T* pre,
                                               T* d_pre, std::int64_t rows, std::int64_t in,
                                               std::int64_t out) {
  if (rows == 0 || in == 0) return;
  const std::lock_guard lock(state_->mutex);
  const char* why = kNoAlgorithm;
  if (!state_->options.fuse_gelu) {
    why = kTurnedOff;
  } else if (in % kAuxiliaryMultiple != 0) {
    why = kOddWidth;
  } else {
    Kind kind{data_type<T>(), data_type<T>(), false, false, false};
    kind.epilogue = CUBLASLT_EPILOGUE_DGELU;
    kind.m = in, kind.n = rows, kind.k = out;
    if (state_->multiply(kind, {weight, d_y, nullptr, d_pre, nullptr, pre})) return;
  }
  state_->note_unfused(type_name<T>(), "gelu gradient", in, out, why);
  linear_backward_input<T>(d_y, weight, d_pre, false, rows, in, out);
  gelu_backward(d_pre, pre, d_pre, rows * in, state_->stream);
}

template <class T>
void MatrixProduct::linear_backward_weight(const T* d_y, const T* x, float* d_weight, float* d_bias,
                                           std::int64_t rows, std::int64_t in, std::int64_t out) {
  if (rows == 0 || out == 0) return;
  const std::lock_guard lock(state_->mutex);
  Kind kind{data_type<T>(), CUDA_R_32F, false, true, true};
  kind.m = in, kind.n = out, kind.k = rows;
  Operands operands{x, d_y, d_weight, d_weight};
  if (d_bias != nullptr && state_->options.fuse_bias_gradient && out <= kMaxBias) {
    auto* sums = reinterpret_cast<float*>(state_->bias_gradient.data());
    kind.epilogue = CUBLASLT_EPILOGUE_BGRADB;
    operands.bias = sums;
    if (state_->multiply(kind, operands)) {
      add(sums, d_bias, out, state_->stream);
      return;
    }
    state_->note_unfused(type_name<T>(), "bias gradient", in, out, kNoAlgorithm);
    kind.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    operands.bias = nullptr;
  }
  state_->multiply_plain(kind, operands);
  if (d_bias != nullptr) add_column_sums(d_y, d_bias, rows, out, state_->stream);
}

#define INSTANTIATE(T)                                                                           \
  template void MatrixProduct::linear(const T*, const T*, const T*, const T*, T*, std::int64_t,  \
                                      std::int64_t, std::int64_t);                               \
  template void MatrixProduct::linear_gelu(const T*, const T*, const T*, T*, T*, std::int64_t,   \
                                           std::int64_t, std::int64_t);                          \
  template void MatrixProduct::linear_backward_input(const T*, const T*, T*, bool, std::int64_t, \
                                                     std::int64_t, std::int64_t);                \
  template void MatrixProduct::linear_gelu_backward_input(                                       \
      const T*, const T*, const T*, T*, std::int64_t, std::int64_t, std::int64_t);               \
  template void MatrixProduct::linear_backward_weight(const T*, const T*, float*, float*,        \
                                                      std::int64_t, std::int64_t, std::int64_t)
INSTANTIATE(float);
INSTANTIATE(__nv_bfloat16);
#undef INSTANTIATE

}  // namespace scone::cuda
