#include "parallel/row_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace scone {
namespace {

std::int64_t sum(std::span<const std::int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

/// target[to[i]] = source[from[i]] for rows of `width`; an empty index list means i itself.
void copy_rows(const float* source, std::span<const std::int64_t> from, float* target,
               std::span<const std::int64_t> to, std::size_t count, std::int64_t width) {
  const auto row_bytes = static_cast<std::size_t>(width) * sizeof(float);
  const auto rows = static_cast<std::int64_t>(count);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto at = static_cast<std::size_t>(i);
    std::memcpy(target + (to.empty() ? i : to[at]) * width,
                source + (from.empty() ? i : from[at]) * width, row_bytes);
  }
}

/// target[to[i]] += source[from[i]]; the targets are distinct.
void add_rows(const float* source, std::span<const std::int64_t> from, float* target,
              std::span<const std::int64_t> to, std::size_t count, std::int64_t width) {
  const auto rows = static_cast<std::int64_t>(count);
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const float* value = source + (from.empty() ? i : from[at]) * width;
    float* total = target + to[at] * width;
    for (std::int64_t column = 0; column < width; ++column) total[column] += value[column];
  }
}

constexpr std::int64_t refused = -1;  // in place of a count

/// Tells every rank how many rows of each cell this one asks of it, [ranks, cells]; returns what
/// the others ask of this one.
std::vector<std::int64_t> exchange_asked(Communicator& communicator, int cells,
                                         const std::vector<std::int64_t>& own_counts) {
  const std::vector<std::int64_t> one_a_cell(static_cast<std::size_t>(communicator.size()), cells);
  std::vector<std::int64_t> their_counts(own_counts.size());
  communicator.all_to_all(std::as_bytes(std::span(own_counts)), one_a_cell,
                          std::as_writable_bytes(std::span(their_counts)), one_a_cell,
                          sizeof(std::int64_t));
  return their_counts;
}

}  // namespace

void refuse_plan_rows(Communicator& communicator, int cells) {
  exchange_asked(
      communicator, cells,
      std::vector<std::int64_t>(static_cast<std::size_t>(cells * communicator.size()), refused));
}

RowPlan plan_rows(Communicator& communicator, std::span<const std::int64_t> ids,
                  std::span<const int> owner, std::span<const std::uint8_t> cell, int cells) {
  if (cells < 1 || cells > RowPlan::most_cells)
    throw std::invalid_argument("plan_rows: cells out of range");
  const auto ranks = static_cast<std::size_t>(communicator.size());
  const auto places = static_cast<std::size_t>(cells) * ranks;
  RowPlan plan;
  plan.cells = cells;
  auto place_of = [&](std::size_t i) {
    return (cell.empty() ? 0 : cell[i]) * ranks + static_cast<std::size_t>(owner[i]);
  };
  plan.asked_counts.assign(places, 0);
  for (std::size_t i = 0; i < ids.size(); ++i) ++plan.asked_counts.at(place_of(i));
  std::vector<std::int64_t> next(places, 0);
  std::exclusive_scan(plan.asked_counts.begin(), plan.asked_counts.end(), next.begin(),
                      std::int64_t{0});
  plan.asked.resize(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i)
    plan.asked[static_cast<std::size_t>(next[place_of(i)]++)] = static_cast<std::int64_t>(i);

  // How many of each cell, then the ids, cell by cell.
  std::vector<std::int64_t> own_counts(places);
  for (std::size_t rank = 0; rank < ranks; ++rank)
    for (std::size_t c = 0; c < static_cast<std::size_t>(cells); ++c)
      own_counts[rank * static_cast<std::size_t>(cells) + c] = plan.asked_counts[c * ranks + rank];
  const std::vector<std::int64_t> their_counts = exchange_asked(communicator, cells, own_counts);
  const auto failed = std::find(their_counts.begin(), their_counts.end(), refused);
  if (failed != their_counts.end())
    throw std::runtime_error(
        fmt::format("rank {} of {} could not prepare its part of a batch; its own message says why",
                    (failed - their_counts.begin()) / cells, communicator.name()));
  plan.served_counts.resize(places);
  for (std::size_t rank = 0; rank < ranks; ++rank)
    for (std::size_t c = 0; c < static_cast<std::size_t>(cells); ++c)
      plan.served_counts[c * ranks + rank] =
          their_counts[rank * static_cast<std::size_t>(cells) + c];
  plan.served.resize(static_cast<std::size_t>(sum(plan.served_counts)));
  std::vector<std::int64_t> sent(ids.size());
  for (std::size_t i = 0; i < sent.size(); ++i)
    sent[i] = ids[static_cast<std::size_t>(plan.asked[i])];
  std::size_t sent_begin = 0, served_begin = 0;
  for (std::size_t c = 0; c < static_cast<std::size_t>(cells); ++c) {
    const auto asked = std::span<const std::int64_t>(plan.asked_counts).subspan(c * ranks, ranks);
    const auto served = std::span<const std::int64_t>(plan.served_counts).subspan(c * ranks, ranks);
    const auto sends = static_cast<std::size_t>(sum(asked));
    const auto receives = static_cast<std::size_t>(sum(served));
    communicator.all_to_all(
        std::as_bytes(std::span(sent).subspan(sent_begin, sends)), asked,
        std::as_writable_bytes(std::span(plan.served).subspan(served_begin, receives)), served,
        sizeof(std::int64_t));
    sent_begin += sends;
    served_begin += receives;
  }
  return plan;
}

void RowExchange::use(const RowPlan& plan) {
  plan_ = &plan;
  bytes_sent_ = 0;
  if (alone()) return;
  const auto width = static_cast<std::size_t>(width_);
  // Grown only: a buffer's first touch is dear.
  if (needed_.size() < plan.asked.size() * width) needed_.resize(plan.asked.size() * width);
  if (owned_.size() < plan.served.size() * width) owned_.resize(plan.served.size() * width);
}

std::span<const std::int64_t> RowExchange::counts_of(const std::vector<std::int64_t>& counts,
                                                     int cell) const {
  const auto ranks = static_cast<std::size_t>(communicator_.size());
  return std::span(counts).subspan(static_cast<std::size_t>(cell) * ranks, ranks);
}

RowExchange::Range RowExchange::asked_of(int cell) const {
  const auto ranks = static_cast<std::size_t>(communicator_.size());
  const std::span<const std::int64_t> all = plan_->asked_counts;
  return {static_cast<std::size_t>(sum(all.first(static_cast<std::size_t>(cell) * ranks))),
          static_cast<std::size_t>(sum(counts_of(plan_->asked_counts, cell)))};
}

RowExchange::Range RowExchange::served_of(int cell) const {
  const auto ranks = static_cast<std::size_t>(communicator_.size());
  const std::span<const std::int64_t> all = plan_->served_counts;
  return {static_cast<std::size_t>(sum(all.first(static_cast<std::size_t>(cell) * ranks))),
          static_cast<std::size_t>(sum(counts_of(plan_->served_counts, cell)))};
}

void RowExchange::start_rows(int cell, std::span<const float> table) {
  const auto slot = static_cast<std::size_t>(cell);
  source_.at(slot) = table;
  if (alone()) return;
  const Range asked = asked_of(cell), served = served_of(cell);
  const auto width = static_cast<std::size_t>(width_);
  const auto owned = std::span(owned_).subspan(served.begin * width, served.count * width);
  const auto needed = std::span(needed_).subspan(asked.begin * width, asked.count * width);
  copy_rows(table.data(), std::span(plan_->served).subspan(served.begin, served.count),
            owned.data(), {}, served.count, width_);
  const auto send_counts = counts_of(plan_->served_counts, cell);
  pending_.at(slot) = communicator_.start_all_to_all(
      std::as_bytes(owned), send_counts, std::as_writable_bytes(needed),
      counts_of(plan_->asked_counts, cell), width * sizeof(float));
  bytes_sent_ += (static_cast<std::int64_t>(served.count) -
                  send_counts[static_cast<std::size_t>(communicator_.rank())]) *
                 width_ * static_cast<std::int64_t>(sizeof(float));
}

void RowExchange::finish_rows(int cell, std::span<float> rows) {
  const auto slot = static_cast<std::size_t>(cell);
  const Range asked = asked_of(cell);
  const auto targets = std::span(plan_->asked).subspan(asked.begin, asked.count);
  if (alone()) {
    copy_rows(source_.at(slot).data(), std::span(plan_->served).subspan(asked.begin, asked.count),
              rows.data(), targets, asked.count, width_);
    return;
  }
  pending_.at(slot)->wait();
  pending_.at(slot).reset();
  copy_rows(needed_.data() + asked.begin * static_cast<std::size_t>(width_), {}, rows.data(),
            targets, asked.count, width_);
}

void RowExchange::start_gradients(int cell, std::span<const float> row_gradients) {
  const auto slot = static_cast<std::size_t>(cell);
  source_.at(slot) = row_gradients;
  if (alone()) return;
  const Range asked = asked_of(cell), served = served_of(cell);
  const auto width = static_cast<std::size_t>(width_);
  const auto owned = std::span(owned_).subspan(served.begin * width, served.count * width);
  const auto needed = std::span(needed_).subspan(asked.begin * width, asked.count * width);
  copy_rows(row_gradients.data(), std::span(plan_->asked).subspan(asked.begin, asked.count),
            needed.data(), {}, asked.count, width_);
  const auto send_counts = counts_of(plan_->asked_counts, cell);
  pending_.at(slot) = communicator_.start_all_to_all(
      std::as_bytes(needed), send_counts, std::as_writable_bytes(owned),
      counts_of(plan_->served_counts, cell), width * sizeof(float));
  bytes_sent_ += (static_cast<std::int64_t>(asked.count) -
                  send_counts[static_cast<std::size_t>(communicator_.rank())]) *
                 width_ * static_cast<std::int64_t>(sizeof(float));
}

void RowExchange::finish_gradients(int cell, std::span<float> table_gradients) {
  const auto slot = static_cast<std::size_t>(cell);
  const Range served = served_of(cell);
  const auto targets = std::span<const std::int64_t>(plan_->served);
  if (alone()) {
    add_rows(source_.at(slot).data(), std::span(plan_->asked).subspan(served.begin, served.count),
             table_gradients.data(), targets.subspan(served.begin, served.count), served.count,
             width_);
    return;
  }
  pending_.at(slot)->wait();
  pending_.at(slot).reset();
  std::size_t begin = served.begin;
  for (const std::int64_t count :
       counts_of(plan_->served_counts, cell)) {  // an asker's are distinct
    const auto rows = static_cast<std::size_t>(count);
    add_rows(owned_.data() + begin * static_cast<std::size_t>(width_), {}, table_gradients.data(),
             targets.subspan(begin, rows), rows, width_);
    begin += rows;
  }
}

void RowExchange::fetch(std::span<const float> table, std::span<float> rows) {
  for (int cell = 0; cell < plan_->cells; ++cell) start_rows(cell, table);
  for (int cell = 0; cell < plan_->cells; ++cell) finish_rows(cell, rows);
}

void RowExchange::give_back(std::span<const float> row_gradients,
                            std::span<float> table_gradients) {
  for (int cell = 0; cell < plan_->cells; ++cell) start_gradients(cell, row_gradients);
  for (int cell = 0; cell < plan_->cells; ++cell) finish_gradients(cell, table_gradients);
}

void RowExchange::poll() {
  for (auto& pending : pending_)
    if (pending) pending->done();
}

}  // namespace scone
