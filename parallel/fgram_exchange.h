#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.h"

namespace scone {

/// Sends the f-gram ids of a global batch to the ranks that own them, their rows back, and the
/// rows' gradients to the owners again, summed there: so each distinct f-gram of the global batch
/// is computed once in the world. Every method is collective over the communicator given. The
/// traffic pattern is that of a sharded embedding table.
class FgramExchange {
 public:
  FgramExchange(Communicator& communicator, std::int64_t width)
      : communicator_(communicator), width_(width) {}

  /// ids: distinct f-gram ids that this rank's positions need, ascending; owner[i]: the rank that
  /// owns ids[i], a pure function of the id. Returns the distinct ids this rank owns of those any
  /// rank needs, ascending.
  const std::vector<std::int64_t>& plan(std::span<const std::int64_t> ids,
                                        std::span<const int> owner);
  /// owned_rows: [owned, width] in the order of plan's result. rows: [ids, width].
  void to_positions(std::span<const float> owned_rows, std::span<float> rows);
  /// row_gradients: [ids, width]. owned_gradients: [owned, width], overwritten by the sum over
  /// ranks in rank order.
  void to_owners(std::span<const float> row_gradients, std::span<float> owned_gradients);

  /// Bytes of rows and ids that this rank sent to others since the last plan, that included.
  std::int64_t bytes_sent() const { return bytes_sent_; }

 private:
  Communicator& communicator_;
  std::int64_t width_;
  std::vector<std::int64_t> owned_;
  std::vector<std::int64_t> send_order_;  // index into ids, grouped by owner
  std::vector<std::int64_t>
      owned_index_;  // index into owned_ of each received id, grouped by source
  std::vector<std::int64_t> send_counts_, receive_counts_;
  std::vector<float> needed_buffer_, owned_buffer_;  // rows in send_order_ / owned_index_ order
  std::int64_t bytes_sent_ = 0;
};

}  // namespace scone
