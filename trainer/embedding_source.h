#pragma once

#include <cstdint>
#include <span>

#include "checkpoint/table/fgram_table.h"
#include "data/fgram_plan.h"
#include "data/fgram_vocabulary.h"
#include "model/fgram_model.h"
#include "model/row_exchange.h"
#include "model/tensor.h"
#include "parallel/process_grid.h"

namespace scone {

/// Where the rows of matched f-grams come from: the live f-gram model, or the baked table. All
/// above it is the same code in training, evaluation and inference.
class EmbeddingSource {
 public:
  virtual ~EmbeddingSource() = default;
  /// out[i, :] = row of f-gram ids[i]. ids: distinct, ascending, maybe none; out: fp32 [ids, width]
  /// of the main model's device.
  virtual void rows(std::span<const std::int64_t> ids, const Tensor& out) = 0;
};

/// The ranks of a run and how both models lie over them.
struct RunGrids {
  RunGrids(Communicator& run_world, int main_tp, int fgram_tp)
      : world(run_world), main(run_world, main_tp, "main"), fgram(run_world, fgram_tp, "fgram") {}
  Communicator& world;
  ProcessGrid main, fgram;
};

/// The f-gram model over the ranks of a run: computes the trie nodes that a plan gives this rank's
/// group, and exchanges rows and gradients. Every method is collective over the world.
class LiveFgramSource final : public EmbeddingSource {
 public:
  /// model: this rank's part of the f-gram model; tokens: this rank's part of the main model's
  /// token embedding. All must outlive this.
  LiveFgramSource(const FgramVocabulary& vocabulary, FgramModel& model, const TokenTable& tokens,
                  const RunGrids& grids, Backend& backend, std::int64_t width);

  /// Plans on the spot.
  void rows(std::span<const std::int64_t> ids, const Tensor& out) override;

  // A training step, in this order. The plan is the one of compute() and must live on.
  /// The f-gram model's forward pass; starts sending all rows.
  void compute(const FgramPlan& plan);
  /// Receives the rows of the cells with (cell & mask) == bits: out: [this rank's ids, width].
  void receive_rows(int mask, int bits, const Tensor& out);
  /// Starts sending those cells' row gradients, [this rank's ids, width].
  void send_gradients(int mask, int bits, const Tensor& row_gradients);
  /// Receives all gradients, then the f-gram model's backward pass: adds to its parameters'
  /// gradients and to those of this rank's part of the token embedding.
  void backward(const std::function<void(std::int64_t offset)>& gradients_final);
  /// Lets what is under way make progress.
  void poll() { row_exchange_.poll(); }

  std::int64_t nodes_computed() const { return model_.nodes_computed(); }
  /// Seconds that compute() and backward() spent in exchanges, waiting included; reset by
  /// compute().
  double exchange_seconds() const { return exchange_seconds_; }
  std::int64_t bytes_sent() const {
    return row_exchange_.bytes_sent() + token_exchange_.bytes_sent();
  }

 private:
  TrieNodes nodes() const { return {plan_->trie.token, plan_->trie.parent, plan_->trie.depth}; }
  /// The rows of the token embedding that the plan's nodes need, from the ranks that hold them.
  void fetch_tokens();
  bool shares_tokens() const { return grids_.main.tensor_size() > 1; }

  FgramModel& model_;
  TokenTable tokens_;
  const RunGrids& grids_;
  Backend& backend_;
  std::int64_t width_;
  FgramPlanner planner_;
  RowExchange row_exchange_, token_exchange_;
  const FgramPlan* plan_ = nullptr;
  FgramPlan own_plan_;     // of rows()
  Tensor node_rows_;       // [nodes, width], rows in forward, their gradients in backward
  TokenTable token_rows_;  // [distinct tokens, width] where the token embedding is shared
  // The fp32 forms of this rank's part of a bf16 token embedding and of its rows, which travel.
  Tensor own_tokens_, received_tokens_;
  double exchange_seconds_ = 0;
};

/// The table of a bundle; threads (OpenMP) share a large lookup.
class TableSource final : public EmbeddingSource {
 public:
  TableSource(const FgramTable& table, Backend& backend) : table_(table), backend_(backend) {}
  void rows(std::span<const std::int64_t> ids, const Tensor& out) override;

 private:
  const FgramTable& table_;
  Backend& backend_;
  Tensor host_;  // where the device is not the host
};

/// A buffer of rows that is allocated anew only when it must grow: returns a view of its first
/// `rows` rows (at least one) of `width`, with whatever content they had.
Tensor reserve_rows(Tensor& buffer, std::int64_t rows, std::int64_t width, Device device,
                    DType dtype = DType::fp32);

}  // namespace scone
