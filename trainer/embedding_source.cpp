#include "trainer/embedding_source.h"

#include <algorithm>
#include <chrono>

#include "parallel/watchdog.h"

namespace scone {
namespace {

/// Adds the seconds of a scope to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  ~Stopwatch() {
    sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void fill_zero(const Tensor& tensor) {
  const auto values = tensor.span<float>();
  const auto elements = static_cast<std::int64_t>(values.size());
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < elements; ++i) values[static_cast<std::size_t>(i)] = 0.0F;
}

constexpr int all_cells = 0;  // mask and bits that every cell fits

}  // namespace

Tensor reserve_rows(Tensor& buffer, std::int64_t rows, std::int64_t width) {
  const std::int64_t needed = std::max<std::int64_t>(rows, 1);
  if (buffer.empty() || buffer.dim(0) < needed || buffer.dim(1) != width)
    buffer = Tensor::zeros({needed + needed / 8, width});
  return buffer.rows(0, needed);
}

LiveFgramSource::LiveFgramSource(const FgramVocabulary& vocabulary, FgramModel& model,
                                 const TokenTable& tokens, const RunGrids& grids,
                                 std::int64_t width)
    : model_(model),
      tokens_(tokens),
      grids_(grids),
      width_(width),
      planner_(vocabulary, grids.world, grids.main, grids.fgram),
      row_exchange_(grids.world, width),
      token_exchange_(grids.main.tensor(), width) {}

void LiveFgramSource::rows(std::span<const std::int64_t> ids, const Tensor& out) {
  own_plan_ = planner_.plan(ids);
  compute(own_plan_);
  receive_rows(all_cells, all_cells, out);
}

void LiveFgramSource::compute(const FgramPlan& plan) {
  plan_ = &plan;
  exchange_seconds_ = 0;
  if (shares_tokens()) {
    const Phase phase("token embeddings for the f-gram model");
    const Stopwatch stopwatch(exchange_seconds_);
    const TokenTable table{reserve_rows(token_rows_.values, plan.token_rows, width_),
                           tokens_.gradients.empty()
                               ? Tensor{}
                               : reserve_rows(token_rows_.gradients, plan.token_rows, width_)};
    token_exchange_.use(plan.tokens);
    token_exchange_.fetch(tokens_.values.span<float>(), table.values.span<float>());
    model_.use_token_table(table);
  }
  const Tensor node_rows = reserve_rows(node_rows_, plan.trie.size(), width_);
  {
    const Phase phase("f-gram model forward");
    model_.forward(nodes(), node_rows);
  }
  const Stopwatch stopwatch(exchange_seconds_);
  row_exchange_.use(plan.rows);
  for (int cell = 0; cell < plan.rows.cells; ++cell)
    row_exchange_.start_rows(cell, node_rows.span<float>());
}

void LiveFgramSource::receive_rows(int mask, int bits, const Tensor& out) {
  const Phase phase("f-gram rows to positions");
  const Stopwatch stopwatch(exchange_seconds_);
  for (int cell = 0; cell < plan_->rows.cells; ++cell)
    if ((cell & mask) == bits) row_exchange_.finish_rows(cell, out.span<float>());
}

void LiveFgramSource::send_gradients(int mask, int bits, const Tensor& row_gradients) {
  const Phase phase("row gradients to owners");
  const Stopwatch stopwatch(exchange_seconds_);
  for (int cell = 0; cell < plan_->rows.cells; ++cell)
    if ((cell & mask) == bits) row_exchange_.start_gradients(cell, row_gradients.span<float>());
}

void LiveFgramSource::backward(const std::function<void(std::int64_t offset)>& gradients_final) {
  const Tensor node_gradients = reserve_rows(node_rows_, plan_->trie.size(), width_);
  {
    const Phase phase("row gradients to owners");
    const Stopwatch stopwatch(exchange_seconds_);
    fill_zero(node_gradients);
    for (int cell = 0; cell < plan_->rows.cells; ++cell)
      row_exchange_.finish_gradients(cell, node_gradients.span<float>());
    // Each row's gradient has come to one rank of the group; all of them run the backward pass.
    if (grids_.fgram.tensor_size() > 1)
      grids_.fgram.tensor().all_reduce(
          node_gradients.span<float>().first(static_cast<std::size_t>(plan_->trie.size() * width_)),
          ReduceOp::sum);
  }
  if (shares_tokens()) fill_zero(reserve_rows(token_rows_.gradients, plan_->token_rows, width_));
  {
    const Phase phase("f-gram model backward");
    model_.backward(nodes(), node_gradients, gradients_final);
  }
  if (!shares_tokens()) return;
  const Phase phase("token gradients of the f-gram model");
  const Stopwatch stopwatch(exchange_seconds_);
  token_exchange_.give_back(
      reserve_rows(token_rows_.gradients, plan_->token_rows, width_).span<float>(),
      tokens_.gradients.span<float>());
}

}  // namespace scone
