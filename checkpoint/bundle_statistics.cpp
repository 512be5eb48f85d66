#include "checkpoint/bundle_statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/loop_errors.h"

namespace scone {
namespace {

constexpr std::int64_t kBlockRows = 4096;

/// Tokens of each f-gram; 0: an id that no key has.
std::vector<std::uint8_t> lengths_of(const TableIndex& index) {
  const std::vector<TableKey> keys = index.keys();
  std::vector<std::uint8_t> lengths(keys.size(), 0);
  for (std::size_t id = 0; id < keys.size(); ++id) {
    if (!keys[id].used) continue;
    const std::int64_t prefix = keys[id].prefix;
    lengths[id] =
        static_cast<std::uint8_t>(prefix < 0 ? 2 : lengths[static_cast<std::size_t>(prefix)] + 1);
  }
  return lengths;
}

/// Norms of all rows.
std::vector<float> norms_of(const FgramTable& table) {
  const std::int64_t rows = table.rows(), blocks = (rows + kBlockRows - 1) / kBlockRows;
  std::vector<float> norms(static_cast<std::size_t>(rows));
  LoopErrors errors;
#pragma omp parallel
  {
    std::vector<std::int64_t> ids;
    std::vector<float> row(static_cast<std::size_t>(table.width()));
#pragma omp for schedule(dynamic)
    for (std::int64_t block = 0; block < blocks; ++block) {
      errors.guard([&] {
        const std::int64_t first = block * kBlockRows;
        ids.resize(static_cast<std::size_t>(std::min(kBlockRows, rows - first)));
        std::iota(ids.begin(), ids.end(), first);
        table.records().read(ids, [&](std::size_t i, const std::byte* record) {
          decode_row(table.layout().type, record, row);
          double sum = 0;
          for (const float value : row) sum += double{value} * double{value};
          norms[static_cast<std::size_t>(ids[i])] = static_cast<float>(std::sqrt(sum));
        });
      });
    }
  }
  errors.rethrow();
  return norms;
}

/// Sorts the norms.
RowNorms describe(std::span<float> norms) {
  RowNorms result;
  result.rows = static_cast<std::int64_t>(norms.size());
  if (norms.empty()) return result;
  std::sort(norms.begin(), norms.end());
  result.least = norms.front();
  result.most = norms.back();
  for (std::size_t quarter = 1; quarter <= 3; ++quarter)
    result.quartiles[quarter - 1] = norms[(quarter * norms.size() + 3) / 4 - 1];
  result.mean =
      std::accumulate(norms.begin(), norms.end(), 0.0) / static_cast<double>(norms.size());
  return result;
}

}  // namespace

TableStatistics measure_table(const FgramTable& table) {
  TableStatistics result;
  const TableLayout& layout = table.layout();
  result.payload_bytes = layout.rows * row_bytes(layout.type, layout.width);
  result.table_bytes = layout.bytes();
  result.index_memory_bytes = table.index().memory_bytes();

  const std::vector<std::uint8_t> lengths = lengths_of(table.index());
  const std::vector<float> norms = norms_of(table);
  const auto most = static_cast<std::size_t>(table.index().header().max_length);
  result.fgrams.assign(most + 1, 0);
  std::vector<std::vector<float>> by_length(most + 1);
  for (std::size_t id = 0; id < lengths.size(); ++id) {
    if (lengths[id] == 0) {
      ++result.unused;
      continue;
    }
    ++result.fgrams[lengths[id]];
    if (!std::isfinite(norms[id])) {
      ++result.not_finite;
      continue;
    }
    result.zero_rows += norms[id] == 0;
    by_length[lengths[id]].push_back(norms[id]);
  }
  std::vector<float> all;
  for (std::vector<float>& of_length : by_length) {
    result.norms_by_length.push_back(describe(of_length));
    all.insert(all.end(), of_length.begin(), of_length.end());
  }
  result.norms = describe(all);
  return result;
}

}  // namespace scone
