#include <cublasLt.h>
#include <cuda_bf16.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

#include "device_access.h"

struct cublasLtContext {};
struct cublasLtMatmulDescription {
  cublasComputeType_t compute;
  cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  const void* auxiliary = nullptr;
  cudaDataType_t bias_type = CUDA_R_32F, auxiliary_type = CUDA_R_32F;
  std::int64_t auxiliary_ld = 0;
};
struct cublasLtMatrixLayout {
  cudaDataType_t type;
  std::int64_t rows, columns, ld;
};
struct cublasLtMatmulPreference {
  std::uint64_t workspace = 0;
  std::uint32_t schemes = ~0U;
  std::uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace {

using Floats = std::vector<float>;

std::mutex refused_mutex;
std::set<cublasLtEpilogue_t> refused;
std::int64_t heuristics = 0;

float load(const void* values, cudaDataType_t type, std::int64_t at) {
  return type == CUDA_R_32F ? static_cast<const float*>(values)[at]
                            : __bfloat162float(static_cast<const __nv_bfloat16*>(values)[at]);
}
void store(float value, void* values, cudaDataType_t type, std::int64_t at) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(values)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(values)[at] = __float2bfloat16(value);
  }
}

Floats floats(const void* values, const cublasLtMatrixLayout& layout) {
  Floats all(static_cast<std::size_t>(layout.columns * layout.ld));
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i] = load(values, layout.type, static_cast<std::int64_t>(i));
  }
  return all;
}

constexpr float kSqrtTwoOverPi = 0.7978845608028654F, kCubic = 0.044715F;

float tanh_part(float x) { return std::tanh(kSqrtTwoOverPi * (x + kCubic * x * x * x)); }
float gelu(float x) { return 0.5F * x * (1.0F + tanh_part(x)); }
float gelu_slope(float x) {
  const float t = tanh_part(x);
  return 0.5F * (1.0F + t) +
         0.5F * x * (1.0F - t * t) * kSqrtTwoOverPi * (1.0F + 3.0F * kCubic * x * x);
}

bool has_bias(cublasLtEpilogue_t epilogue) {
  return epilogue == CUBLASLT_EPILOGUE_BIAS || epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool has_gelu(cublasLtEpilogue_t epilogue) {
  return epilogue == CUBLASLT_EPILOGUE_GELU_AUX || epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool has_auxiliary(cublasLtEpilogue_t epilogue) {
  return has_gelu(epilogue) || epilogue == CUBLASLT_EPILOGUE_DGELU;
}

std::int64_t inner(const cublasLtMatmulDescription& description, const cublasLtMatrixLayout& a) {
  return description.transpose_a == CUBLAS_OP_N ? a.columns : a.rows;
}

/// Whether shapes, types and attributes go together.
bool is_sound(const cublasLtMatmulDescription& description, const cublasLtMatrixLayout& a,
              const cublasLtMatrixLayout& b, const cublasLtMatrixLayout& c,
              const cublasLtMatrixLayout& d) {
  const bool plain_a = description.transpose_a == CUBLAS_OP_N;
  const bool plain_b = description.transpose_b == CUBLAS_OP_N;
  if ((plain_a ? a.rows : a.columns) != d.rows || (plain_b ? b.columns : b.rows) != d.columns) {
    return false;
  }
  if (inner(description, a) != (plain_b ? b.rows : b.columns)) return false;
  if (a.type != b.type || c.type != d.type) return false;
  if (a.type == CUDA_R_32F && d.type != CUDA_R_32F) return false;
  if (c.rows != d.rows || c.columns != d.columns) return false;
  for (const cublasLtMatrixLayout* layout : {&a, &b, &c, &d}) {
    if (layout->rows <= 0 || layout->columns <= 0 || layout->ld < layout->rows) return false;
  }
  const cublasLtEpilogue_t epilogue = description.epilogue;
  if ((has_bias(epilogue) || epilogue == CUBLASLT_EPILOGUE_BGRADB) &&
      (description.bias == nullptr || description.bias_type != d.type)) {
    return false;
  }
  return !has_auxiliary(epilogue) ||
         (description.auxiliary != nullptr && description.auxiliary_type == d.type &&
          description.auxiliary_ld >= d.rows && description.auxiliary_ld % 8 == 0);
}

/// What an algorithm was chosen for.
cublasLtMatmulAlgo_t algorithm_of(const cublasLtMatmulDescription& description,
                                  const cublasLtMatrixLayout& a, const cublasLtMatrixLayout& d,
                                  std::uint64_t alignment, std::uint64_t workspace) {
  return {{static_cast<std::uint64_t>(d.rows), static_cast<std::uint64_t>(d.columns),
           static_cast<std::uint64_t>(inner(description, a)),
           static_cast<std::uint64_t>(description.epilogue) * 16 +
               static_cast<std::uint64_t>(description.transpose_a) * 8 +
               static_cast<std::uint64_t>(description.transpose_b) * 4 +
               static_cast<std::uint64_t>(a.type) * 2 + static_cast<std::uint64_t>(d.type),
           alignment, workspace, static_cast<std::uint64_t>(description.compute), 1}};
}

}  // namespace

namespace cuda_on_host {
void refuse_epilogue(cublasLtEpilogue_t epilogue, bool refuse) {
  const std::lock_guard lock(refused_mutex);
  if (refuse) {
    refused.insert(epilogue);
  } else {
    refused.erase(epilogue);
  }
}
std::int64_t heuristic_calls() {
  const std::lock_guard lock(refused_mutex);
  return heuristics;
}
}  // namespace cuda_on_host

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unknown";
}
const char* cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description,
                                        cublasComputeType_t compute, cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *description = new cublasLtMatmulDescription{compute};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete description;
  return CUBLAS_STATUS_SUCCESS;
}

namespace {
template <class Field>
cublasStatus_t assign(Field& field, const void* value, std::size_t bytes) {
  if (bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
}  // namespace

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return assign(description->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return assign(description->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return assign(description->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return assign(description->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return assign(description->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return assign(description->auxiliary, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return assign(description->auxiliary_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
      return assign(description->auxiliary_type, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          std::uint64_t rows, std::uint64_t columns,
                                          std::int64_t leading_dimension) {
  *layout = new cublasLtMatrixLayout{type, static_cast<std::int64_t>(rows),
                                     static_cast<std::int64_t>(columns), leading_dimension};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, std::size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return assign(preference->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return assign(preference->schemes, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return assign(preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                    value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  const std::lock_guard lock(refused_mutex);
  ++heuristics;
  *found = 0;
  if (!is_sound(*description, *a, *b, *c, *d)) return CUBLAS_STATUS_INVALID_VALUE;
  if ((preference->schemes & CUBLASLT_REDUCTION_SCHEME_INPLACE) != 0) {
    return CUBLAS_STATUS_INVALID_VALUE;  // ours are never to sum in the output's type
  }
  if (refused.contains(description->epilogue)) return CUBLAS_STATUS_NOT_SUPPORTED;
  std::uint32_t alignment = preference->alignment[0];
  for (const std::uint32_t other : preference->alignment) alignment = std::min(alignment, other);
  results[0] = {algorithm_of(*description, *a, *d, alignment, preference->workspace),
                preference->workspace, CUBLAS_STATUS_SUCCESS};
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

namespace {

/// A matrix stored row by row, or its transpose.
struct Operand {
  Floats values;
  std::int64_t stride;
  bool transposed;
  float at(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(transposed ? column * stride + row
                                                      : row * stride + column)];
  }
};

/// sums: [m, n] += scale A B. A: [m, k]; B: [k, n].
void add_product(const Operand& a, const Operand& b, std::int64_t m, std::int64_t n, std::int64_t k,
                 float scale, Floats& sums) {
  Floats columns(static_cast<std::size_t>(k * n));  // B, row by row
  for (std::int64_t inner = 0; inner < k; ++inner)
    for (std::int64_t j = 0; j < n; ++j)
      columns[static_cast<std::size_t>(inner * n + j)] = b.at(inner, j);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < m; ++i) {
    float* to = sums.data() + i * n;
    for (std::int64_t inner = 0; inner < k; ++inner) {
      const float factor = scale * a.at(i, inner);
      const float* from = columns.data() + inner * n;
#pragma omp simd
      for (std::int64_t j = 0; j < n; ++j) to[j] += factor * from[j];
    }
  }
}

}  // namespace

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t description, const void* alpha,
                              const void* a_values, cublasLtMatrixLayout_t a, const void* b_values,
                              cublasLtMatrixLayout_t b, const void* beta, const void* c_values,
                              cublasLtMatrixLayout_t c, void* d_values, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              std::size_t workspace_bytes, cudaStream_t) {
  const cuda_on_host::DeviceAccess access;
  if (!is_sound(*description, *a, *b, *c, *d)) return CUBLAS_STATUS_INVALID_VALUE;
  const std::uint64_t alignment = algorithm->data[4];
  const cublasLtMatmulAlgo_t fits =
      algorithm_of(*description, *a, *d, alignment, algorithm->data[5]);
  if (std::memcmp(&fits, algorithm, sizeof fits) != 0 || workspace_bytes < algorithm->data[5] ||
      workspace == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  for (const void* pointer : {a_values, b_values, c_values, static_cast<const void*>(d_values),
                              description->bias, description->auxiliary}) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  }
  // Column-major is the row-major transpose: d' = op(b)' op(a)'.
  const std::int64_t m = d->rows, n = d->columns, k = inner(*description, *a);
  const float scale = *static_cast<const float*>(alpha), kept = *static_cast<const float*>(beta);
  Floats sums(static_cast<std::size_t>(m * n));
  const Operand left{floats(b_values, *b), b->ld, description->transpose_b == CUBLAS_OP_T};
  const Operand right{floats(a_values, *a), a->ld, description->transpose_a == CUBLAS_OP_T};
  add_product(left, right, n, m, k, scale, sums);
  const cublasLtEpilogue_t epilogue = description->epilogue;
  for (std::int64_t column = 0; column < n; ++column) {
    for (std::int64_t row = 0; row < m; ++row) {
      float value = sums[static_cast<std::size_t>(column * m + row)];
      if (kept != 0.0F) value += kept * load(c_values, c->type, column * c->ld + row);
      if (has_bias(epilogue)) value += load(description->bias, description->bias_type, row);
      const std::int64_t at = column * description->auxiliary_ld + row;
      if (has_gelu(epilogue)) {
        store(value, const_cast<void*>(description->auxiliary), description->auxiliary_type, at);
        value = gelu(value);
      } else if (epilogue == CUBLASLT_EPILOGUE_DGELU) {
        value *= gelu_slope(load(description->auxiliary, description->auxiliary_type, at));
      }
      store(value, d_values, d->type, column * d->ld + row);
    }
  }
  for (std::int64_t column = 0; epilogue == CUBLASLT_EPILOGUE_BGRADB && column < n; ++column) {
    float sum = 0;
    for (std::int64_t i = 0; i < k; ++i) sum += left.at(column, i);
    store(sum, const_cast<void*>(description->bias), description->bias_type, column);
  }
  return CUBLAS_STATUS_SUCCESS;
}
