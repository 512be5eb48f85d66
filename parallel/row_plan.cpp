#include "parallel/row_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace scone {
namespace {

std::int64_t sum(std::span<const std::int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
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

}  // namespace scone
