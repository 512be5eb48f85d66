#include "checkpoint/shard_slices.h"

#include <algorithm>
#include <stdexcept>

namespace scone {
namespace {

/// Rows of a shard that are consecutive in the global tensor too.
struct RowRun {
  std::int64_t local, global, count;
};

std::vector<RowRun> row_runs(const ParameterSpec& spec, const Part& part, std::int64_t columns) {
  std::vector<RowRun> runs;
  if (spec.sharding.axis == 1) {
    runs.push_back({0, 0, spec.shape[0]});
  } else {
    for_each_run(spec.shape, spec.sharding, part,
                 [&](std::int64_t global, std::int64_t local, std::int64_t count) {
                   runs.push_back({local / columns, global / columns, count / columns});
                 });
  }
  return runs;
}

}  // namespace

void append_slices(const std::string& name, const ParameterSpec& spec, const Part& part,
                   std::int64_t begin, const Tensor& values, std::vector<TensorSlice>& slices) {
  const std::size_t axes = spec.shape.size();
  if (axes < 1 || axes > 2 || spec.sharding.axis > 1)
    throw std::logic_error("append_slices: tensors of one or two axes");
  if (spec.sharding.axis == 1 && (spec.sharding.sections > 1 || spec.shape[1] % part.count != 0))
    throw std::logic_error("append_slices: columns cut by sections, or padded");
  const Shape shard = shard_shape(spec.shape, spec.sharding, part.count);
  const std::int64_t columns = axes == 2 ? shard[1] : 1;
  const std::int64_t first_column = spec.sharding.axis == 1 ? columns * part.index : 0;
  const std::int64_t end = begin + values.elements();
  for (const RowRun& run : row_runs(spec, part, columns)) {
    std::int64_t at = std::max(begin, run.local * columns);
    const std::int64_t last = std::min(end, (run.local + run.count) * columns);
    while (at < last) {
      const std::int64_t row = at / columns, column = at % columns;
      const bool whole_rows = column == 0 && last - at >= columns;
      const std::int64_t rows = whole_rows ? (last - at) / columns : 1;
      const std::int64_t width = whole_rows ? columns : std::min(columns - column, last - at);
      const std::int64_t global_row = row - run.local + run.global;
      const Tensor box = values.rows(at - begin, rows * width);
      slices.push_back(axes == 2 ? TensorSlice{name,
                                               spec.shape,
                                               {global_row, first_column + column},
                                               box.view({rows, width})}
                                 : TensorSlice{name, spec.shape, {global_row}, box});
      at += rows * width;
    }
  }
}

}  // namespace scone
