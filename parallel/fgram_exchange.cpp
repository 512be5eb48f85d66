#include "parallel/fgram_exchange.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace scone {
namespace {

std::int64_t sent_to_others(std::span<const std::int64_t> counts, int self) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0}) -
         counts[static_cast<std::size_t>(self)];
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

}  // namespace

const std::vector<std::int64_t>& FgramExchange::plan(std::span<const std::int64_t> ids,
                                                     std::span<const int> owner) {
  const auto ranks = static_cast<std::size_t>(communicator_.size());
  send_counts_.assign(ranks, 0);
  for (const int rank : owner) ++send_counts_[static_cast<std::size_t>(rank)];
  std::vector<std::int64_t> next(ranks, 0);
  std::exclusive_scan(send_counts_.begin(), send_counts_.end(), next.begin(), std::int64_t{0});
  send_order_.resize(ids.size());
  std::vector<std::int64_t> sent(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto place = static_cast<std::size_t>(next[static_cast<std::size_t>(owner[i])]++);
    send_order_[place] = static_cast<std::int64_t>(i);
    sent[place] = ids[i];
  }
  receive_counts_ = communicator_.exchange_counts(send_counts_);
  std::vector<std::int64_t> received(static_cast<std::size_t>(
      std::accumulate(receive_counts_.begin(), receive_counts_.end(), std::int64_t{0})));
  communicator_.all_to_all(std::as_bytes(std::span(sent)), send_counts_,
                           std::as_writable_bytes(std::span(received)), receive_counts_,
                           sizeof(std::int64_t));
  owned_ = received;
  std::sort(owned_.begin(), owned_.end());
  owned_.erase(std::unique(owned_.begin(), owned_.end()), owned_.end());
  owned_index_.resize(received.size());
  for (std::size_t i = 0; i < received.size(); ++i)
    owned_index_[i] = std::lower_bound(owned_.begin(), owned_.end(), received[i]) - owned_.begin();
  const auto width = static_cast<std::size_t>(width_);
  if (communicator_.size() > 1) {
    needed_buffer_.resize(ids.size() * width);
    owned_buffer_.resize(received.size() * width);
  }
  bytes_sent_ = sent_to_others(send_counts_, communicator_.rank()) *
                static_cast<std::int64_t>(sizeof(std::int64_t));
  return owned_;
}

void FgramExchange::to_positions(std::span<const float> owned_rows, std::span<float> rows) {
  if (communicator_.size() == 1) {  // plan's ids are owned here, in the same order
    copy_rows(owned_rows.data(), {}, rows.data(), {}, send_order_.size(), width_);
    return;
  }
  copy_rows(owned_rows.data(), owned_index_, owned_buffer_.data(), {}, owned_index_.size(), width_);
  communicator_.all_to_all(std::as_bytes(std::span(owned_buffer_)), receive_counts_,
                           std::as_writable_bytes(std::span(needed_buffer_)), send_counts_,
                           static_cast<std::size_t>(width_) * sizeof(float));
  copy_rows(needed_buffer_.data(), {}, rows.data(), send_order_, send_order_.size(), width_);
  bytes_sent_ += sent_to_others(receive_counts_, communicator_.rank()) * width_ *
                 static_cast<std::int64_t>(sizeof(float));
}

void FgramExchange::to_owners(std::span<const float> row_gradients,
                              std::span<float> owned_gradients) {
  if (communicator_.size() == 1) {
    copy_rows(row_gradients.data(), {}, owned_gradients.data(), {}, send_order_.size(), width_);
    return;
  }
  copy_rows(row_gradients.data(), send_order_, needed_buffer_.data(), {}, send_order_.size(),
            width_);
  communicator_.all_to_all(std::as_bytes(std::span(needed_buffer_)), send_counts_,
                           std::as_writable_bytes(std::span(owned_buffer_)), receive_counts_,
                           static_cast<std::size_t>(width_) * sizeof(float));
  std::fill(owned_gradients.begin(), owned_gradients.end(), 0.0f);
  // By source rank, a fixed order; the ids of one source are distinct.
  std::int64_t begin = 0;
  for (const std::int64_t count : receive_counts_) {
#pragma omp parallel for schedule(static)
    for (std::int64_t i = begin; i < begin + count; ++i) {
      float* sum = &owned_gradients[static_cast<std::size_t>(
          owned_index_[static_cast<std::size_t>(i)] * width_)];
      const float* value = &owned_buffer_[static_cast<std::size_t>(i * width_)];
      for (std::int64_t column = 0; column < width_; ++column) sum[column] += value[column];
    }
    begin += count;
  }
  bytes_sent_ += sent_to_others(send_counts_, communicator_.rank()) * width_ *
                 static_cast<std::int64_t>(sizeof(float));
}

}  // namespace scone
