#include "model/row_exchange.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace scone {
namespace {

std::int64_t sum(std::span<const std::int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

}  // namespace

void RowExchange::upload(std::span<const std::int64_t> index, Tensor& target) {
  const auto count = static_cast<std::int64_t>(index.size());
  if (target.shape().empty() || target.elements() < count) {
    target = Tensor();  // not both at once
    target = Tensor::zeros({count + count / 8}, DType::int32, backend_.device());
  }
  host_index_.resize(std::max(host_index_.size(), index.size()));
  std::ranges::transform(index, host_index_.begin(), [](std::int64_t row) {
    if (row > std::numeric_limits<std::int32_t>::max())
      throw std::length_error("row exchange: a table of more than 2^31 - 1 rows");
    return static_cast<std::int32_t>(row);
  });
  backend_.upload(std::span<const std::int32_t>(host_index_).first(index.size()), target);
}

Tensor RowExchange::grown(Tensor& buffer, std::int64_t rows) const {
  if (buffer.empty() || buffer.dim(0) < rows) {
    buffer = Tensor();  // not both at once
    buffer = Tensor::zeros({std::max<std::int64_t>(rows + rows / 8, 1), width_}, DType::fp32,
                           backend_.device());
  }
  return buffer.rows(0, rows);
}

void RowExchange::use(const RowPlan& plan) {
  plan_ = &plan;
  bytes_sent_ = 0;
  if (alone()) {  // row i is the table's row by_row[i]
    std::vector<std::int64_t> by_row(plan.asked.size());
    for (std::size_t i = 0; i < by_row.size(); ++i)
      by_row[static_cast<std::size_t>(plan.asked[i])] = plan.served[i];
    upload(by_row, served_);
    unfinished_ = plan.cells;
    rows_moved_ = false;
    return;
  }
  upload(plan.asked, asked_);
  upload(plan.served, served_);
  grown(needed_, static_cast<std::int64_t>(plan.asked.size()));
  grown(owned_, static_cast<std::int64_t>(plan.served.size()));
}

std::span<const std::int64_t> RowExchange::counts_of(const std::vector<std::int64_t>& counts,
                                                     int cell) const {
  const auto ranks = static_cast<std::size_t>(communicator_.size());
  return std::span(counts).subspan(static_cast<std::size_t>(cell) * ranks, ranks);
}

RowExchange::Range RowExchange::range_of(const std::vector<std::int64_t>& counts, int cell) const {
  const auto ranks = static_cast<std::size_t>(communicator_.size());
  const std::span<const std::int64_t> all = counts;
  return {sum(all.first(static_cast<std::size_t>(cell) * ranks)), sum(counts_of(counts, cell))};
}

void RowExchange::start(int cell, const Tensor& sent, const std::vector<std::int64_t>& sent_counts,
                        const Tensor& received, const std::vector<std::int64_t>& received_counts) {
  const auto row_bytes = static_cast<std::size_t>(width_) * sizeof(float);
  const auto counts = counts_of(sent_counts, cell);
  pending_.at(static_cast<std::size_t>(cell)) = communicator_.start_all_to_all(
      std::as_bytes(sent.span<float>()), counts, std::as_writable_bytes(received.span<float>()),
      counts_of(received_counts, cell), row_bytes);
  bytes_sent_ += (sum(counts) - counts[static_cast<std::size_t>(communicator_.rank())]) *
                 static_cast<std::int64_t>(row_bytes);
}

void RowExchange::wait(int cell) {
  auto& pending = pending_.at(static_cast<std::size_t>(cell));
  pending->wait();
  pending.reset();
}

void RowExchange::start_rows(int cell, const Tensor& table) {
  source_ = table;
  if (alone()) return;
  const Range asked = range_of(plan_->asked_counts, cell);
  const Range served = range_of(plan_->served_counts, cell);
  const Tensor owned = owned_.rows(served.begin, served.count);
  backend_.gather_rows(table, served_.rows(served.begin, served.count), owned, served.count);
  start(cell, owned, plan_->served_counts, needed_.rows(asked.begin, asked.count),
        plan_->asked_counts);
}

void RowExchange::finish_rows(int cell, const Tensor& rows) {
  if (alone()) {  // all cells at once
    if (!rows_moved_)
      backend_.gather_rows(source_, served_, rows, static_cast<std::int64_t>(plan_->asked.size()));
    rows_moved_ = true;
    return;
  }
  wait(cell);
  const Range asked = range_of(plan_->asked_counts, cell);
  backend_.scatter_rows(needed_.rows(asked.begin, asked.count),
                        asked_.rows(asked.begin, asked.count), rows, asked.count);
}

void RowExchange::start_gradients(int cell, const Tensor& row_gradients) {
  source_ = row_gradients;
  if (alone()) return;
  const Range asked = range_of(plan_->asked_counts, cell);
  const Range served = range_of(plan_->served_counts, cell);
  const Tensor needed = needed_.rows(asked.begin, asked.count);
  backend_.gather_rows(row_gradients, asked_.rows(asked.begin, asked.count), needed, asked.count);
  start(cell, needed, plan_->asked_counts, owned_.rows(served.begin, served.count),
        plan_->served_counts);
}

void RowExchange::finish_gradients(int cell, const Tensor& table_gradients) {
  if (alone()) {  // all cells at once, when the last is finished
    if (--unfinished_ > 0) return;
    unfinished_ = plan_->cells;
    backend_.scatter_add_rows(source_, served_, table_gradients,
                              static_cast<std::int64_t>(plan_->asked.size()));
    return;
  }
  wait(cell);
  const Range served = range_of(plan_->served_counts, cell);
  backend_.scatter_add_rows(owned_.rows(served.begin, served.count),
                            served_.rows(served.begin, served.count), table_gradients,
                            served.count);
}

void RowExchange::fetch(const Tensor& table, const Tensor& rows) {
  rows_moved_ = false;
  for (int cell = 0; cell < plan_->cells; ++cell) start_rows(cell, table);
  for (int cell = 0; cell < plan_->cells; ++cell) finish_rows(cell, rows);
}

void RowExchange::give_back(const Tensor& row_gradients, const Tensor& table_gradients) {
  for (int cell = 0; cell < plan_->cells; ++cell) start_gradients(cell, row_gradients);
  for (int cell = 0; cell < plan_->cells; ++cell) finish_gradients(cell, table_gradients);
}

void RowExchange::poll() {
  for (auto& pending : pending_)
    if (pending) pending->done();
}

}  // namespace scone
