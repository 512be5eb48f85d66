#pragma once

#include <cstdint>

#include "parallel/bf16.h"

namespace scone {

// Products of small matrices by oneDNN, each on the calling thread, which must be inside an OpenMP
// parallel region or alone. All throw std::runtime_error where oneDNN refuses.

/// Row-major C = beta C + alpha op(A) op(B), op(A): [m, k], op(B): [k, n].
void gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
          float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
          float beta, float* c, std::int64_t ldc);

/// Whether packed_product works on this processor, at the level in use.
bool has_bf16_products();

// How B: [k, n] lies for packed_product: blocks of 32 rows and 64 columns, those of a column of
// blocks one after the other; in a block, pairs of rows interleaved: row / 2, column, row % 2. What
// goes beyond k and n in the last blocks is zero.
constexpr std::int64_t kPackedRows = 32;
constexpr std::int64_t kPackedColumns = 64;

/// C (+)= A B. a: [m, k]; b: packed; c: [m, n]; n: a multiple of kPackedColumns. For each (m, n, k,
/// accumulate) a thread makes and keeps a kernel: callers keep them few.
void packed_product(const Bf16* a, const Bf16* b, float* c, std::int64_t m, std::int64_t n,
                    std::int64_t k, bool accumulate);

}  // namespace scone
