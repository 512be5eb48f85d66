#pragma once

#include <cstdint>
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

}  // namespace scone
