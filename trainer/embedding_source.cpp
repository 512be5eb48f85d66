#include "trainer/embedding_source.h"

#include <algorithm>

#include "data/loop_errors.h"
#include "parallel/watchdog.h"
#include "trainer/stopwatch.h"

namespace scone {
namespace {

constexpr std::int64_t lookup_part = 256;  // rows that one thread looks up at a time
constexpr int all_cells = 0;               // mask and bits that every cell fits

}  // namespace

Tensor reserve_rows(Tensor& buffer, std::int64_t rows, std::int64_t width, Device device,
                    DType dtype) {
  const std::int64_t needed = std::max<std::int64_t>(rows, 1);
  if (buffer.empty() || buffer.dim(0) < needed || buffer.dim(1) != width) {
    buffer = Tensor();  // not both at once
    buffer = Tensor::zeros({needed + needed / 8, width}, dtype, device);
  }
  return buffer.rows(0, needed);
}

LiveFgramSource::LiveFgramSource(const FgramVocabulary& vocabulary, FgramModel& model,
                                 const TokenTable& tokens, const RunGrids& grids, Backend& backend,
                                 std::int64_t width)
    : model_(model),
      tokens_(tokens),
      grids_(grids),
      backend_(backend),
      width_(width),
      planner_(vocabulary, grids.world, grids.main, grids.fgram),
      row_exchange_(grids.world, backend, width),
      token_exchange_(grids.main.tensor(), backend, width) {}

void LiveFgramSource::rows(std::span<const std::int64_t> ids, const Tensor& out) {
  own_plan_ = planner_.plan(ids);
  compute(own_plan_);
  receive_rows(all_cells, all_cells, out);
}

void LiveFgramSource::fetch_tokens() {
  const Phase phase("token embeddings for the f-gram model");
  const Stopwatch stopwatch(exchange_seconds_);
  const std::int64_t rows = plan_->token_rows;
  const DType dtype = tokens_.values.dtype();
  const auto reserve = [&](Tensor& buffer, DType type) {
    return reserve_rows(buffer, rows, width_, backend_.device(), type);
  };
  const TokenTable table{
      reserve(token_rows_.values, dtype),
      tokens_.gradients.empty() ? Tensor{} : reserve(token_rows_.gradients, DType::fp32)};
  token_exchange_.use(plan_->tokens);
  if (dtype == DType::fp32) {
    token_exchange_.fetch(tokens_.values, table.values);
  } else {
    const Tensor own = reserve_rows(own_tokens_, tokens_.values.dim(0), width_, backend_.device());
    const Tensor received = reserve(received_tokens_, DType::fp32);
    backend_.copy(tokens_.values, own);
    token_exchange_.fetch(own, received);
    backend_.copy(received, table.values);
  }
  model_.use_token_table(table);
}

void LiveFgramSource::compute(const FgramPlan& plan) {
  plan_ = &plan;
  exchange_seconds_ = 0;
  if (shares_tokens()) fetch_tokens();
  const Tensor node_rows = reserve_rows(node_rows_, plan.trie.size(), width_, backend_.device());
  {
    const Phase phase("f-gram model forward");
    model_.forward(nodes(), node_rows);
  }
  const Stopwatch stopwatch(exchange_seconds_);
  row_exchange_.use(plan.rows);
  for (int cell = 0; cell < plan.rows.cells; ++cell) row_exchange_.start_rows(cell, node_rows);
}

void LiveFgramSource::receive_rows(int mask, int bits, const Tensor& out) {
  const Phase phase("f-gram rows to positions");
  const Stopwatch stopwatch(exchange_seconds_);
  for (int cell = 0; cell < plan_->rows.cells; ++cell)
    if ((cell & mask) == bits) row_exchange_.finish_rows(cell, out);
}

void LiveFgramSource::send_gradients(int mask, int bits, const Tensor& row_gradients) {
  const Phase phase("row gradients to owners");
  const Stopwatch stopwatch(exchange_seconds_);
  for (int cell = 0; cell < plan_->rows.cells; ++cell)
    if ((cell & mask) == bits) row_exchange_.start_gradients(cell, row_gradients);
}

void LiveFgramSource::backward(const std::function<void(std::int64_t offset)>& gradients_final) {
  const Tensor node_gradients =
      reserve_rows(node_rows_, plan_->trie.size(), width_, backend_.device());
  {
    const Phase phase("row gradients to owners");
    const Stopwatch stopwatch(exchange_seconds_);
    backend_.zero(node_gradients);
    for (int cell = 0; cell < plan_->rows.cells; ++cell)
      row_exchange_.finish_gradients(cell, node_gradients);
    // Each row's gradient has come to one rank of the group; all of them run the backward pass.
    if (grids_.fgram.tensor_size() > 1)
      grids_.fgram.tensor().all_reduce(
          node_gradients.span<float>().first(static_cast<std::size_t>(plan_->trie.size() * width_)),
          ReduceOp::sum);
  }
  const Tensor token_gradients =
      shares_tokens()
          ? reserve_rows(token_rows_.gradients, plan_->token_rows, width_, backend_.device())
          : Tensor{};
  backend_.zero(token_gradients);
  {
    const Phase phase("f-gram model backward");
    model_.backward(nodes(), node_gradients, gradients_final);
  }
  if (!shares_tokens()) return;
  const Phase phase("token gradients of the f-gram model");
  const Stopwatch stopwatch(exchange_seconds_);
  token_exchange_.give_back(token_gradients, tokens_.gradients);
}

void TableSource::rows(std::span<const std::int64_t> ids, const Tensor& out) {
  if (ids.empty()) return;
  const auto count = static_cast<std::int64_t>(ids.size());
  const bool on_host = out.device() == Device::cpu;
  const Tensor host =
      on_host ? out : reserve_rows(host_, count, out.dim(1), Device::cpu).rows(0, count);
  const auto values = host.span<float>();
  const auto width = static_cast<std::size_t>(out.dim(1));
  const std::int64_t parts = (count + lookup_part - 1) / lookup_part;
  LoopErrors errors;
#pragma omp parallel for schedule(dynamic) if (parts > 1)
  for (std::int64_t part = 0; part < parts; ++part) {
    errors.guard([&] {
      const auto begin = static_cast<std::size_t>(part * lookup_part);
      const auto own = ids.subspan(begin, std::min<std::size_t>(lookup_part, ids.size() - begin));
      table_.lookup(own, values.subspan(begin * width, own.size() * width));
    });
  }
  errors.rethrow();
  if (!on_host) backend_.upload(host.span<float>(), out);
}

}  // namespace scone
