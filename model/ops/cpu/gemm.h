#pragma once

#include <cstdint>

namespace scone {

/// One row-major matrix product C = beta C + alpha op(A) op(B), op(A): [m, k], op(B): [k, n], on
/// the calling thread when inside an OpenMP parallel region. Throws std::runtime_error where oneDNN
/// refuses.
void gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
          float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
          float beta, float* c, std::int64_t ldc);

}  // namespace scone
