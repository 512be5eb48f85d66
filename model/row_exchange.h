#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/ops/ops.h"
#include "model/tensor.h"
#include "parallel/communicator.h"
#include "parallel/row_plan.h"

namespace scone {

/// Moves rows by a plan: from the owners' table to those who asked, and the rows' gradients back to
/// the owners, summed there. All tensors are fp32, of the backend's device. Collective; the start
/// of each cell, and so of all messages, must come in the same order on every rank, the finish may
/// come whenever it suits once all cells are started.
class RowExchange {
 public:
  /// Both must outlive this. communicator: its tensor collectives are of the backend's device.
  RowExchange(Communicator& communicator, Backend& backend, std::int64_t width)
      : communicator_(communicator), backend_(backend), width_(width) {}

  /// Sets the plan for the calls that follow; it must outlive them. Throws std::length_error where
  /// a table has more than 2^31 - 1 rows.
  void use(const RowPlan& plan);

  /// table: [any, width], this rank's; read until the cell is finished.
  void start_rows(int cell, const Tensor& table);
  /// rows: [this rank's ids, width]; the cell's rows are written.
  void finish_rows(int cell, const Tensor& rows);

  /// row_gradients: as rows; where this rank is alone, read until all cells are finished.
  void start_gradients(int cell, const Tensor& row_gradients);
  /// The cell's gradients are added to table_gradients, in the order of the askers' ranks.
  void finish_gradients(int cell, const Tensor& table_gradients);

  /// All cells at once.
  void fetch(const Tensor& table, const Tensor& rows);
  void give_back(const Tensor& row_gradients, const Tensor& table_gradients);

  /// Lets what is under way make progress.
  void poll();
  /// Bytes of rows that this rank has sent to others since use().
  std::int64_t bytes_sent() const { return bytes_sent_; }

 private:
  /// Where a cell lies in asked (and needed_) and served (and owned_).
  struct Range {
    std::int64_t begin, count;
  };
  Range range_of(const std::vector<std::int64_t>& counts, int cell) const;
  std::span<const std::int64_t> counts_of(const std::vector<std::int64_t>& counts, int cell) const;
  void start(int cell, const Tensor& sent, const std::vector<std::int64_t>& sent_counts,
             const Tensor& received, const std::vector<std::int64_t>& received_counts);
  void wait(int cell);
  bool alone() const { return communicator_.size() == 1; }
  void upload(std::span<const std::int64_t> index, Tensor& target);
  /// Grown only: a buffer's first touch is dear.
  Tensor grown(Tensor& buffer, std::int64_t rows) const;

  Communicator& communicator_;
  Backend& backend_;
  std::int64_t width_;
  const RowPlan* plan_ = nullptr;
  Tensor asked_, served_;  // int32, the plan's; where alone served_ is by own row
  Tensor needed_, owned_;  // rows in the order of asked and served
  std::vector<std::int32_t> host_index_;
  std::array<std::unique_ptr<PendingCollective>, RowPlan::most_cells> pending_;
  Tensor source_;       // where alone: what was started
  int unfinished_ = 0;  // where alone: cells whose gradients are not finished
  bool rows_moved_ = false;
  std::int64_t bytes_sent_ = 0;
};

}  // namespace scone
