#include "model/tensor_parallel.h"

#include <algorithm>
#include <vector>

namespace scone {
namespace {

std::span<float> leading_rows(const Tensor& tensor, std::int64_t rows) {
  return tensor.span<float>().first(static_cast<std::size_t>(rows * tensor.dim(1)));
}

/// Elements of each rank's slice of `rows` rows.
std::vector<std::int64_t> element_counts(std::int64_t rows, std::int64_t width, int parts) {
  std::vector<std::int64_t> counts = slice_counts(rows, parts);
  for (std::int64_t& count : counts) count *= width;
  return counts;
}

}  // namespace

Tensor TensorParallel::gather(const Tensor& own, const Tensor& full, std::int64_t rows) const {
  if (!splits_rows()) return own;
  const std::int64_t width = full.dim(1);
  const Slice slice = own_rows(rows);
  const std::span<float> all = leading_rows(full, rows);
  std::copy_n(own.data<float>(), slice.count * width, all.begin() + slice.begin * width);
  group_->all_gather(all, element_counts(rows, width, size()));
  return full;
}

void TensorParallel::reduce(const Tensor& partial, const Tensor& own, std::int64_t rows) const {
  if (group_ == nullptr) return;
  const std::span<float> values = leading_rows(partial, rows);
  if (splits_rows()) {
    group_->reduce_scatter(values, element_counts(rows, partial.dim(1), size()),
                           leading_rows(own, own_rows(rows).count));
  } else {
    group_->all_reduce(values, ReduceOp::sum);
  }
}

}  // namespace scone
