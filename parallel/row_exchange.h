#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "parallel/communicator.h"

namespace scone {

/// Who asks whom for which rows of a table that is spread over the ranks of a group: the traffic
/// pattern of sharded embedding tables. Rows travel in up to most_cells batches, called cells, so
/// that some can be under way while others are used already.
struct RowPlan {
  static constexpr int most_cells = 4;
  int cells = 1;
  std::vector<std::int64_t> asked;          // index into this rank's rows, by (cell, owner)
  std::vector<std::int64_t> asked_counts;   // [cells, ranks]
  std::vector<std::int64_t> served;         // row of this rank's table, by (cell, asker)
  std::vector<std::int64_t> served_counts;  // [cells, ranks]
};

/// Tells the owners what is asked of them. ids: distinct, what this rank needs, one a row of its
/// own; owner: the rank of each; cell: of each, < cells, or empty (all in cell 0). The result's
/// `served` holds the ids asked of this rank: the caller turns them into rows of its table.
/// Collective, by all_to_all alone.
RowPlan plan_rows(Communicator& communicator, std::span<const std::int64_t> ids,
                  std::span<const int> owner, std::span<const std::uint8_t> cell = {},
                  int cells = 1);

/// In place of plan_rows, on a rank that cannot say what it needs: plan_rows throws
/// std::runtime_error on the others, which would else wait for this one. Collective with it.
void refuse_plan_rows(Communicator& communicator, int cells = 1);

/// Moves rows by a plan: from the owners' table to those who asked, and the rows' gradients back to
/// the owners, summed there. Collective; the start of each cell, and so of all messages, must come
/// in the same order on every rank, the finish may come whenever it suits.
class RowExchange {
 public:
  RowExchange(Communicator& communicator, std::int64_t width)
      : communicator_(communicator), width_(width) {}

  /// Sets the plan for the calls that follow; it must outlive them.
  void use(const RowPlan& plan);

  /// table: [any, width], this rank's; read until the cell is finished.
  void start_rows(int cell, std::span<const float> table);
  /// rows: [this rank's ids, width]; the cell's rows are written.
  void finish_rows(int cell, std::span<float> rows);

  /// row_gradients: as rows.
  void start_gradients(int cell, std::span<const float> row_gradients);
  /// The cell's gradients are added to table_gradients, in the order of the askers' ranks.
  void finish_gradients(int cell, std::span<float> table_gradients);

  /// All cells at once.
  void fetch(std::span<const float> table, std::span<float> rows);
  void give_back(std::span<const float> row_gradients, std::span<float> table_gradients);

  /// Lets what is under way make progress.
  void poll();
  /// Bytes of rows that this rank has sent to others since use().
  std::int64_t bytes_sent() const { return bytes_sent_; }

 private:
  /// Where a cell lies in asked (and needed_) and served (and owned_).
  struct Range {
    std::size_t begin, count;
  };
  Range asked_of(int cell) const;
  Range served_of(int cell) const;
  std::span<const std::int64_t> counts_of(const std::vector<std::int64_t>& counts, int cell) const;
  bool alone() const { return communicator_.size() == 1; }

  Communicator& communicator_;
  std::int64_t width_;
  const RowPlan* plan_ = nullptr;
  std::vector<float> needed_, owned_;  // rows in the order of asked and served
  std::array<std::unique_ptr<PendingCollective>, RowPlan::most_cells> pending_;
  std::array<std::span<const float>, RowPlan::most_cells> source_;  // where alone: not sent at all
  std::int64_t bytes_sent_ = 0;
};

}  // namespace scone
