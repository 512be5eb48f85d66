#include "model/tensor_parallel.h"

#include <vector>

#include "parallel/bf16.h"

namespace scone {
namespace {

template <class T>
std::span<T> leading_rows(const Tensor& tensor, std::int64_t rows) {
  return {static_cast<T*>(tensor.raw()), static_cast<std::size_t>(rows * tensor.dim(1))};
}

/// Elements of each rank's slice of `rows` rows.
std::vector<std::int64_t> element_counts(std::int64_t rows, std::int64_t width, int parts) {
  std::vector<std::int64_t> counts = slice_counts(rows, parts);
  for (std::int64_t& count : counts) count *= width;
  return counts;
}

}  // namespace

Tensor TensorParallel::gather(Backend& backend, const Tensor& own, const Tensor& full,
                              std::int64_t rows) const {
  if (!splits_rows()) return own;
  const Slice slice = own_rows(rows);
  if (slice.count > 0) backend.copy(own.rows(0, slice.count), full.rows(slice.begin, slice.count));
  const auto counts = element_counts(rows, full.dim(1), size());
  if (full.dtype() == DType::bf16)
    group_->all_gather(leading_rows<Bf16>(full, rows), counts);
  else
    group_->all_gather(leading_rows<float>(full, rows), counts);
  return full;
}

void TensorParallel::reduce(const Tensor& partial, const Tensor& own, std::int64_t rows) const {
  if (group_ == nullptr) return;
  const auto sum = [&]<class T>(std::span<T> values) {
    if (splits_rows())
      group_->reduce_scatter(std::span<const T>(values),
                             element_counts(rows, partial.dim(1), size()),
                             leading_rows<T>(own, own_rows(rows).count));
    else if constexpr (std::is_same_v<T, Bf16>)
      group_->all_reduce_sum(values);
    else
      group_->all_reduce(values, ReduceOp::sum);
  };
  if (partial.dtype() == DType::bf16)
    sum(leading_rows<Bf16>(partial, rows));
  else
    sum(leading_rows<float>(partial, rows));
}

}  // namespace scone
