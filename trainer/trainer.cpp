#include "trainer/trainer.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

#include "parallel/error.h"
#include "trainer/learning_rate.h"
#include "trainer/matrix_peak.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Adds the seconds since `start` to `sum` and starts anew.
void lap(Clock::time_point& start, double& sum) {
  sum += seconds_since(start);
  start = Clock::now();
}

/// Rank that owns an f-gram: a hash of its leading 2-gram, so that a subtree of the trie stays
/// whole.
int owner_of(std::int64_t leading_bigram, int ranks) {
  auto hash = static_cast<std::uint64_t>(leading_bigram) + 0x9e3779b97f4a7c15ULL;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ULL;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebULL;
  return static_cast<int>((hash ^ (hash >> 31)) % static_cast<std::uint64_t>(ranks));
}

}  // namespace

Trainer::Trainer(RunConfig config, Backend& backend, Communicator& world)
    : config_(std::move(config)),
      backend_(backend),
      world_(world),
      data_(open_run_data(config_)),
      width_(config_.model.main.width) {
  const ModelConfig& model = config_.model;
  main_parameters_ = ParameterSet(main_parameter_specs(model), backend.device());
  main_parameters_.initialise(config_.run.seed);
  main_model_ = std::make_unique<MainModel>(model, main_parameters_, backend,
                                            config_.trainer.microbatch_tokens, true);
  const AdamWSettings settings{.beta1 = config_.optimizer.betas[0],
                               .beta2 = config_.optimizer.betas[1],
                               .epsilon = config_.optimizer.epsilon,
                               .weight_decay = config_.optimizer.weight_decay};
  main_optimizer_ = std::make_unique<AdamW>(main_parameters_, backend, settings);
  if (data_.vocabulary) {
    fgram_parameters_ = ParameterSet(fgram_parameter_specs(model), backend.device());
    fgram_parameters_.initialise(config_.run.seed);
    fgram_model_ =
        std::make_unique<FgramModel>(model, fgram_parameters_, main_parameters_, backend, true);
    fgrams_ = std::make_unique<LiveFgramSource>(*data_.vocabulary, *fgram_model_, width_);
    exchange_ = std::make_unique<FgramExchange>(world, width_);
    fgram_optimizer_ = std::make_unique<AdamW>(fgram_parameters_, backend, settings);
  }
  if (data_.validation) token_bytes_ = token_byte_lengths(*data_.tokenizer);
  resume();
  batches_ = std::make_unique<BatchStream>(
      *data_.train, data_.vocabulary.get(),
      BatchStreamOptions{
          .sequence_length = config_.trainer.sequence_length,
          .batch_sequences = config_.trainer.batch_tokens / config_.trainer.sequence_length,
          .rank = world.rank(),
          .ranks = world.size(),
          .seed = config_.run.seed,
          .shuffle = true,
          .attention_across_documents = config_.data.attention_across_documents,
          .prefetch = config_.data.prefetch},
      data_state_);
}

Trainer::~Trainer() = default;

StepMetrics Trainer::train_step() {
  const auto step_start = Clock::now();
  StepMetrics metrics;
  const Batch batch = batches_->next();
  const std::int64_t targets =
      std::max<std::int64_t>(1, world_.all_reduce_value(batch.local_targets, ReduceOp::sum));
  main_parameters_.zero_gradients();
  if (has_fgrams()) fgram_parameters_.zero_gradients();

  const auto distinct = static_cast<std::int64_t>(batch.fgrams.size());
  const Tensor rows = reserve_rows(rows_buffer_, distinct, width_);
  const Tensor row_gradients = reserve_rows(row_gradients_buffer_, distinct, width_);
  backend_.zero(row_gradients);
  if (has_fgrams()) forward_fgrams(batch, rows, metrics);
  const double loss_sum = run_main_model(
      batch, rows, row_gradients, static_cast<float>(1.0 / static_cast<double>(targets)), metrics);
  if (has_fgrams()) backward_fgrams(row_gradients, metrics);
  metrics.grad_norm = reduce_gradients();

  double sums[] = {loss_sum,
                   batches_->last_wait_seconds(),
                   stop_signal_.received() != 0 ? 1.0 : 0.0,
                   metrics.main_seconds,
                   metrics.fgram_seconds,
                   metrics.exchange_seconds};
  world_.all_reduce(std::span<double>(sums), ReduceOp::sum);
  const auto ranks = static_cast<double>(world_.size());
  metrics.loss = sums[0] / static_cast<double>(targets);
  stop_requested_ = sums[2] > 0;
  metrics.main_seconds = sums[3] / ranks;
  metrics.fgram_seconds = sums[4] / ranks;
  metrics.exchange_seconds = sums[5] / ranks;
  update_parameters(metrics);

  ++step_;
  tokens_ += config_.trainer.batch_tokens;
  data_state_ = batch.state_after;
  metrics.step = step_;
  metrics.tokens = tokens_;
  count_work(metrics);
  metrics.step_seconds = seconds_since(step_start);
  metrics.tokens_per_second =
      static_cast<double>(config_.trainer.batch_tokens) / metrics.step_seconds;
  metrics.data_wait_share = sums[1] / ranks / metrics.step_seconds;
  return metrics;
}

void Trainer::forward_fgrams(const Batch& batch, const Tensor& rows, StepMetrics& metrics) {
  auto start = Clock::now();
  owners_.clear();
  for (const std::int64_t id : batch.fgrams)
    owners_.push_back(owner_of(data_.vocabulary->leading_bigram(id), world_.size()));
  const std::vector<std::int64_t>& owned_ids = exchange_->plan(batch.fgrams, owners_);
  owned_rows_ =
      reserve_rows(owned_rows_buffer_, static_cast<std::int64_t>(owned_ids.size()), width_);
  lap(start, metrics.exchange_seconds);
  fgrams_->rows(owned_ids, owned_rows_);
  lap(start, metrics.fgram_seconds);
  exchange_->to_positions(owned_rows_.span<float>(), rows.span<float>());
  lap(start, metrics.exchange_seconds);
}

double Trainer::run_main_model(const Batch& batch, const Tensor& rows, const Tensor& row_gradients,
                               float loss_scale, StepMetrics& metrics) {
  auto start = Clock::now();
  double loss_sum = 0;
  const std::int64_t length = batch.length;
  const std::int64_t microbatch = config_.trainer.microbatch_tokens / length;
  for (std::int64_t first = 0; first < batch.sequences; first += microbatch) {
    const std::int64_t count = std::min(microbatch, batch.sequences - first);
    auto part = [&](const std::vector<std::int32_t>& all) {
      return std::span(all).subspan(static_cast<std::size_t>(first * length),
                                    static_cast<std::size_t>(count * length));
    };
    loss_sum += main_model_->forward_backward({.sequences = count,
                                               .length = length,
                                               .tokens = part(batch.tokens),
                                               .targets = part(batch.targets),
                                               .attention_start = part(batch.attention_start),
                                               .row_of_position = part(batch.row_of_position)},
                                              rows, row_gradients, loss_scale);
  }
  lap(start, metrics.main_seconds);
  return loss_sum;
}

void Trainer::backward_fgrams(const Tensor& row_gradients, StepMetrics& metrics) {
  auto start = Clock::now();
  exchange_->to_owners(row_gradients.span<float>(), owned_rows_.span<float>());
  lap(start, metrics.exchange_seconds);
  fgrams_->backward(owned_rows_);
  lap(start, metrics.fgram_seconds);
}

double Trainer::reduce_gradients() {
  double squared_norm = 0;
  for (ParameterSet* parameters : {&main_parameters_, &fgram_parameters_}) {
    if (parameters->size() == 0) continue;  // a baseline has no f-gram model
    world_.all_reduce(parameters->flat_gradients().span<float>(), ReduceOp::sum);
    squared_norm += backend_.squared_norm(parameters->flat_gradients());
  }
  return std::sqrt(squared_norm);
}

void Trainer::update_parameters(StepMetrics& metrics) {
  metrics.lr = learning_rate(config_, step_);
  metrics.skipped = !std::isfinite(metrics.loss) || !std::isfinite(metrics.grad_norm);
  bad_steps_in_a_row_ = metrics.skipped ? bad_steps_in_a_row_ + 1 : 0;
  if (metrics.skipped) return;
  const double clip = config_.optimizer.clip;
  const double scale = clip > 0 && metrics.grad_norm > clip ? clip / metrics.grad_norm : 1.0;
  ++updates_;
  main_optimizer_->step(updates_, metrics.lr, scale);
  if (has_fgrams()) fgram_optimizer_->step(updates_, metrics.lr, scale);
}

void Trainer::count_work(StepMetrics& metrics) {
  const ModelConfig& model = config_.model;
  const auto batch_tokens = static_cast<double>(config_.trainer.batch_tokens);
  const double attended = static_cast<double>(config_.trainer.sequence_length + 1) / 2;
  const double head =
      2.0 * static_cast<double>(width_) * static_cast<double>(model.vocabulary_size);
  const double main_flops =
      3 * batch_tokens * (forward_flops_per_token(model.main, attended) + head);
  if (peak_ > 0) metrics.main_peak_share = main_flops / metrics.main_seconds / peak_;
  if (!has_fgrams()) return;
  const auto computed =
      static_cast<double>(world_.all_reduce_value(fgrams_->nodes_computed(), ReduceOp::sum));
  metrics.fgram_nodes_per_token = static_cast<double>(global_distinct_nodes()) / batch_tokens;
  metrics.fgram_nodes_computed_per_token = computed / batch_tokens;
  const double mean_depth = static_cast<double>(model.fgram.context + 1) / 2;
  const double fgram_flops = 3 * computed * forward_flops_per_token(model.fgram, mean_depth);
  if (peak_ > 0) metrics.fgram_peak_share = fgram_flops / metrics.fgram_seconds / peak_;
}

std::int64_t Trainer::global_distinct_nodes() {
  const FgramTrie& trie = fgrams_->trie();
  std::int64_t nodes =
      world_.all_reduce_value(trie.size() - trie.roots, ReduceOp::sum);  // owned by one rank each
  if (world_.size() == 1) return nodes + trie.roots;
  std::vector<std::int32_t> roots;
  for (std::size_t i = 0; i < trie.token.size(); ++i)
    if (trie.parent[i] < 0) roots.push_back(trie.token[i]);
  std::set<std::int32_t> distinct_roots;
  for (const auto& bytes : world_.all_gather(std::as_bytes(std::span(roots)))) {
    const auto* tokens = reinterpret_cast<const std::int32_t*>(bytes.data());
    distinct_roots.insert(tokens, tokens + bytes.size() / sizeof(std::int32_t));
  }
  return nodes + static_cast<std::int64_t>(distinct_roots.size());
}

EvaluationResult Trainer::evaluate_validation() {
  return evaluate(
      *data_.validation, data_.vocabulary.get(), *main_model_, fgrams_.get(), width_, token_bytes_,
      {.sequence_length = config_.trainer.sequence_length,
       .microbatch_sequences = config_.trainer.microbatch_tokens / config_.trainer.sequence_length,
       .tokens = config_.trainer.eval_tokens,
       .attention_across_documents = config_.data.attention_across_documents},
      world_);
}

TrainingResult Trainer::run() {
  const auto run_start = Clock::now();
  const std::int64_t total = config_.total_steps();
  const std::int64_t first_step = step_;
  world_.barrier();
  peak_ = world_.all_reduce_value(measure_matrix_peak(backend_), ReduceOp::sum);
  print_start(peak_);
  if (world_.rank() == 0)
    metrics_log_ = std::make_unique<MetricsLog>(
        std::filesystem::path(config_.run.folder) / config_.logging.metrics, step_);

  TrainingResult result;
  double step_seconds = 0;
  std::int64_t saved_step = first_step;
  auto due = [&](std::int64_t every) {
    return step_ == total || (every > 0 && step_ % every == 0);
  };
  while (step_ < total && !stop_requested_) {
    StepMetrics metrics = train_step();
    result.loss = metrics.loss;  // none where nothing was left to do
    step_seconds += metrics.step_seconds;
    if (data_.validation && due(config_.trainer.eval_every)) {
      const EvaluationResult evaluation = evaluate_validation();
      validation_loss_ = metrics.validation_loss = evaluation.loss;
      spdlog::info(
          "step {} | validation loss {:.4f} | perplexity {:.2f} | {:.4f} bits/byte | {} tokens in "
          "{}",
          step_, evaluation.loss, evaluation.perplexity, evaluation.bits_per_byte,
          evaluation.tokens, format_duration(evaluation.seconds));
    }
    if (metrics_log_) metrics_log_->write(metrics);
    if (step_ == first_step + 1 || step_ == total || step_ % config_.logging.every == 0 ||
        metrics.skipped) {
      const double mean = step_seconds / static_cast<double>(step_ - first_step);
      spdlog::info(
          describe(metrics, total, has_fgrams(), mean * static_cast<double>(total - step_)));
    }
    if (metrics.skipped &&
        (config_.trainer.on_bad_step == BadStep::stop || bad_steps_in_a_row_ >= 10))
      throw std::runtime_error(
          fmt::format("step {}: loss {} and gradient norm {} ({} such steps in a row); lower "
                      "optimizer.peak_lr or look at the data",
                      step_, metrics.loss, metrics.grad_norm, bad_steps_in_a_row_));
    if (due(config_.checkpoint.every) || stop_requested_) {
      save_checkpoint();
      saved_step = step_;
    }
  }
  result.stopped_by_signal = stop_requested_ && step_ < total;
  if (result.stopped_by_signal)
    spdlog::info(
        "stopped by a signal after step {}, checkpoint of step {} saved; start again to go on",
        step_, saved_step);
  result.step = step_;
  result.tokens = tokens_;
  result.validation_loss = validation_loss_;
  result.seconds = seconds_since(run_start);
  return result;
}

}  // namespace scone
