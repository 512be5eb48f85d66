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
  needed_buffer_.resize(ids.size() * width);
  owned_buffer_.resize(received.size() * width);
  bytes_sent_ = sent_to_others(send_counts_, communicator_.rank()) *
                static_cast<std::int64_t>(sizeof(std::int64_t));
  return owned_;
}

void FgramExchange::to_positions(std::span<const float> owned_rows, std::span<float> rows) {
  const auto width = static_cast<std::size_t>(width_);
  for (std::size_t i = 0; i < owned_index_.size(); ++i)
    std::memcpy(&owned_buffer_[i * width],
                &owned_rows[static_cast<std::size_t>(owned_index_[i]) * width],
                width * sizeof(float));
  communicator_.all_to_all(std::as_bytes(std::span(owned_buffer_)), receive_counts_,
                           std::as_writable_bytes(std::span(needed_buffer_)), send_counts_,
                           width * sizeof(float));
  for (std::size_t i = 0; i < send_order_.size(); ++i)
    std::memcpy(&rows[static_cast<std::size_t>(send_order_[i]) * width], &needed_buffer_[i * width],
                width * sizeof(float));
  bytes_sent_ += sent_to_others(receive_counts_, communicator_.rank()) * width_ *
                 static_cast<std::int64_t>(sizeof(float));
}

void FgramExchange::to_owners(std::span<const float> row_gradients,
                              std::span<float> owned_gradients) {
  const auto width = static_cast<std::size_t>(width_);
  for (std::size_t i = 0; i < send_order_.size(); ++i)
    std::memcpy(&needed_buffer_[i * width],
                &row_gradients[static_cast<std::size_t>(send_order_[i]) * width],
                width * sizeof(float));
  communicator_.all_to_all(std::as_bytes(std::span(needed_buffer_)), send_counts_,
                           std::as_writable_bytes(std::span(owned_buffer_)), receive_counts_,
                           width * sizeof(float));
  std::fill(owned_gradients.begin(), owned_gradients.end(), 0.0f);
  for (std::size_t i = 0; i < owned_index_.size(); ++i) {  // by source rank: a fixed order
    float* sum = &owned_gradients[static_cast<std::size_t>(owned_index_[i]) * width];
    const float* value = &owned_buffer_[i * width];
    for (std::size_t column = 0; column < width; ++column) sum[column] += value[column];
  }
  bytes_sent_ += sent_to_others(send_counts_, communicator_.rank()) * width_ *
                 static_cast<std::int64_t>(sizeof(float));
}

}  // namespace scone
