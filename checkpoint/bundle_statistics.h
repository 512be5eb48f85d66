#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "checkpoint/table/fgram_table.h"

namespace scone {

/// Euclidean norms of rows; zeros where there are none.
struct RowNorms {
  std::int64_t rows = 0;
  double least = 0, most = 0, mean = 0;
  /// The least norms that at least a quarter, a half and three quarters of the rows do not exceed.
  std::array<double, 3> quartiles = {};
};

struct TableStatistics {
  std::int64_t payload_bytes = 0;       // the rows without padding and first pages
  std::int64_t table_bytes = 0;         // the files of rows
  std::int64_t index_memory_bytes = 0;  // in RAM, and as a file
  std::vector<std::int64_t> fgrams;     // [K + 1]: by length
  std::int64_t unused = 0;     // ids of f-grams longer than K: never looked up, not in what follows
  std::int64_t zero_rows = 0;  // rows of zeros alone
  std::int64_t not_finite = 0;  // rows with an infinity (beyond fp16's range) or NaN: in no norm
  RowNorms norms;               // of all lengths
  std::vector<RowNorms> norms_by_length;  // [K + 1]
};

/// Reads every row once; the threads (OpenMP) share them. The result does not depend on their
/// number. Memory: about 20 bytes an f-gram. Throws std::runtime_error where reading fails.
TableStatistics measure_table(const FgramTable& table);

}  // namespace scone
