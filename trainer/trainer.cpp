#include "trainer/trainer.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "checkpoint/checkpoint_folder.h"
#include "parallel/error.h"
#include "parallel/watchdog.h"
#include "trainer/learning_rate.h"
#include "trainer/matrix_peak.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Adds the seconds since `start` to `sum`, once what was begun since is done, and starts anew.
void lap(Backend& backend, Clock::time_point& start, double& sum) {
  backend.synchronize();
  sum += seconds_since(start);
  start = Clock::now();
}

}  // namespace

Trainer::Trainer(RunConfig config, Backend& backend, Communicator& world)
    : config_(std::move(config)),
      backend_(backend),
      counted_world_(count_traffic(world, traffic_)),
      world_(*counted_world_),
      grids_(world_, config_.parallel.main.tp, config_.parallel.fgram.tp),
      data_(open_run_data(config_)),
      width_(config_.model.main.width),
      bad_steps_(config_.trainer.bad_step_sigma, config_.trainer.bad_step_window) {
  const ModelConfig& model = config_.model;
  const auto part_of = [](const ProcessGrid& grid) {
    return Part{grid.tensor_rank(), grid.tensor_size()};
  };
  const TensorParallel main_tp(grids_.main.tensor(), config_.parallel.main.sequence_parallel);
  const DType dtype = config_.compute.dtype;
  main_parameters_ = ParameterSet(main_parameter_specs(model), backend.device(), true,
                                  part_of(grids_.main), dtype);
  main_parameters_.initialise(config_.run.seed, backend);
  main_model_ = std::make_unique<MainModel>(
      model, main_parameters_, backend,
      MainModelOptions{.max_positions = config_.trainer.microbatch_tokens,
                       .training = true,
                       .tp = main_tp,
                       .recompute = config_.compute.recompute});
  main_optimizer_ = std::make_unique<DistributedOptimizer>(
      main_parameters_, grids_.main, backend, optimizer_settings(config_.parallel.main));
  if (data_.vocabulary) {
    const TensorParallel fgram_tp(grids_.fgram.tensor(), config_.parallel.fgram.sequence_parallel);
    const TokenTable tokens = whole_token_table(main_parameters_);
    fgram_parameters_ = ParameterSet(fgram_parameter_specs(model), backend.device(), true,
                                     part_of(grids_.fgram), dtype);
    fgram_parameters_.initialise(config_.run.seed, backend);
    fgram_model_ =
        std::make_unique<FgramModel>(model, fgram_parameters_, tokens, backend, true, fgram_tp);
    fgrams_ = std::make_unique<LiveFgramSource>(*data_.vocabulary, *fgram_model_, tokens, grids_,
                                                backend, width_);
    fgram_optimizer_ = std::make_unique<DistributedOptimizer>(
        fgram_parameters_, grids_.fgram, backend, optimizer_settings(config_.parallel.fgram));
    planner_ = std::make_unique<FgramPlanner>(*data_.vocabulary, world_, grids_.main, grids_.fgram);
  }
  if (data_.validation) token_bytes_ = token_byte_lengths(*data_.tokenizer);
  writer_ = std::make_unique<CheckpointWriter>(
      std::filesystem::path(config_.run.folder) / "checkpoints",
      world_.split_on_host(0, "checkpoint writer"),
      CheckpointOptions{.keep = config_.checkpoint.keep,
                        .permanent_every = config_.checkpoint.permanent_every,
                        .async = config_.checkpoint.async});
  resume();
  batches_ = std::make_unique<BatchStream>(*data_.train, data_.vocabulary.get(),
                                           batch_stream_options(config_, grids_.main), data_state_,
                                           planner_.get());
}

Trainer::~Trainer() {
  try {  // however the run ends, what became of its last save is told
    writer_->close();
    report_saves();
  } catch (const std::exception& error) {
    spdlog::warn("the last checkpoint's outcome is unknown: {}", error.what());
  }
}

OptimizerSettings Trainer::optimizer_settings(const GridConfig& grid) const {
  return {.beta1 = config_.optimizer.betas[0],
          .beta2 = config_.optimizer.betas[1],
          .epsilon = config_.optimizer.epsilon,
          .weight_decay = config_.optimizer.weight_decay,
          .zero = grid.zero > 0,
          .sequence_parallel = grid.sequence_parallel,
          .overlap = config_.parallel.overlap,
          .bucket_elements = config_.parallel.bucket_elements,
          .stochastic_rounding = config_.optimizer.stochastic_rounding,
          .seed = config_.run.seed};
}

StepMetrics Trainer::train_step() {
  const auto step_start = Clock::now();
  const Traffic traffic_before = traffic_;
  StepMetrics metrics;
  batches_->next(batch_);
  const Batch& batch = batch_;
  const std::int64_t own_targets = grids_.main.tensor_rank() == 0 ? batch.local_targets : 0;
  const std::int64_t targets =
      std::max<std::int64_t>(1, world_.all_reduce_value(own_targets, ReduceOp::sum));
  backend_.zero(main_parameters_.flat_gradients());
  if (has_fgrams()) {
    backend_.zero(fgram_parameters_.flat_gradients());
    auto start = Clock::now();
    fgrams_->compute(batch.plan);
    lap(backend_, start, metrics.fgram_seconds);
    metrics.fgram_seconds -= fgrams_->exchange_seconds();
  }
  const double loss_sum =
      run_main_model(batch, static_cast<float>(1.0 / static_cast<double>(targets)), metrics);
  if (in_step_) in_step_(step_ + 1);
  if (has_fgrams()) backward_fgrams(metrics);
  reduce(batch, loss_sum, targets, metrics);
  update_parameters(metrics);

  ++step_;
  tokens_ += config_.trainer.batch_tokens;
  data_state_ = batch.state_after;
  metrics.step = step_;
  metrics.tokens = tokens_;
  count_work(metrics);
  metrics.step_seconds = seconds_since(step_start);
  metrics.wall_time =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  metrics.tokens_per_second =
      static_cast<double>(config_.trainer.batch_tokens) / metrics.step_seconds;
  metrics.data_wait_share /= metrics.step_seconds;
  step_traffic_.add(traffic_.since(traffic_before));
  return metrics;
}

double Trainer::run_main_model(const Batch& batch, float loss_scale, StepMetrics& metrics) {
  const Phase phase("main model");
  auto start = Clock::now();
  const auto distinct = static_cast<std::int64_t>(batch.fgrams.size());
  const Tensor rows = reserve_rows(rows_buffer_, distinct, width_, backend_.device());
  const Tensor row_gradients =
      reserve_rows(row_gradients_buffer_, distinct, width_, backend_.device());
  backend_.zero(row_gradients);
  const std::int64_t length = batch.length;
  const std::int64_t microbatch = config_.trainer.microbatch_tokens / length;
  const std::int64_t count = (batch.sequences + microbatch - 1) / microbatch;
  const double exchange_before = has_fgrams() ? fgrams_->exchange_seconds() : 0;
  if (has_fgrams()) fgrams_->receive_rows(BatchCells::used_later, 0, rows);
  double loss_sum = 0;
  for (std::int64_t index = 0; index < count; ++index) {
    const bool last = index + 1 == count;
    const std::int64_t first = index * microbatch;
    const std::int64_t sequences = std::min(microbatch, batch.sequences - first);
    auto part = [&](const std::vector<std::int32_t>& all) {
      return std::span(all).subspan(static_cast<std::size_t>(first * length),
                                    static_cast<std::size_t>(sequences * length));
    };
    if (has_fgrams() && last) {  // what the other microbatches alone used travels meanwhile
      if (count == 1) fgrams_->receive_rows(BatchCells::used_later, BatchCells::used_later, rows);
      fgrams_->send_gradients(BatchCells::done_early, BatchCells::done_early, row_gradients);
    }
    loss_sum +=
        main_model_->forward_backward({.sequences = sequences,
                                       .length = length,
                                       .tokens = part(batch.tokens),
                                       .targets = part(batch.targets),
                                       .attention_start = part(batch.attention_start),
                                       .row_of_position = part(batch.row_of_position)},
                                      rows, row_gradients, loss_scale, [&](std::int64_t offset) {
                                        if (has_fgrams()) fgrams_->poll();
                                        main_optimizer_->poll();
                                        if (last) main_optimizer_->gradients_final(offset);
                                      });
    if (has_fgrams() && index == 0 && count > 1)
      fgrams_->receive_rows(BatchCells::used_later, BatchCells::used_later, rows);
  }
  if (has_fgrams()) fgrams_->send_gradients(BatchCells::done_early, 0, row_gradients);
  lap(backend_, start, metrics.main_seconds);
  if (has_fgrams()) metrics.main_seconds -= fgrams_->exchange_seconds() - exchange_before;
  return loss_sum;
}

void Trainer::backward_fgrams(StepMetrics& metrics) {
  auto start = Clock::now();
  const double exchange_before = fgrams_->exchange_seconds();
  fgrams_->backward([this](std::int64_t offset) {
    main_optimizer_->poll();
    fgram_optimizer_->poll();
    fgram_optimizer_->gradients_final(offset);
  });
  lap(backend_, start, metrics.fgram_seconds);
  metrics.fgram_seconds -= fgrams_->exchange_seconds() - exchange_before;
  metrics.exchange_seconds = fgrams_->exchange_seconds();
}

void Trainer::reduce(const Batch& batch, double loss_sum, std::int64_t targets,
                     StepMetrics& metrics) {
  const Phase phase("gradient reduction");
  auto start = Clock::now();
  main_optimizer_->finish_reduction();
  double squared_norm = main_optimizer_->squared_norm();
  if (has_fgrams()) {
    fgram_optimizer_->finish_reduction();
    squared_norm += fgram_optimizer_->squared_norm();
  }
  lap(backend_, start, metrics.reduction_seconds);
  const auto number = [](std::int64_t count) { return static_cast<double>(count); };
  const bool computes = has_fgrams() && grids_.fgram.tensor_rank() == 0;
  double sums[] = {grids_.main.tensor_rank() == 0 ? loss_sum : 0.0,
                   squared_norm,
                   wants_to_stop() ? 1.0 : 0.0,
                   metrics.main_seconds,
                   metrics.fgram_seconds,
                   metrics.exchange_seconds,
                   metrics.reduction_seconds,
                   batches_->last_wait_seconds(),
                   number(batch.plan.nodes + batch.plan.roots),
                   computes ? number(fgrams_->nodes_computed()) : 0.0,
                   has_fgrams() ? number(fgrams_->bytes_sent()) : 0.0};
  world_.all_reduce(std::span<double>(sums), ReduceOp::sum);
  const auto ranks = static_cast<double>(world_.size());
  const auto batch_tokens = static_cast<double>(config_.trainer.batch_tokens);
  metrics.loss = sums[0] / static_cast<double>(targets);
  metrics.grad_norm = std::sqrt(sums[1]);
  stop_requested_ = sums[2] > 0;
  metrics.main_seconds = sums[3] / ranks;
  metrics.fgram_seconds = sums[4] / ranks;
  metrics.exchange_seconds = sums[5] / ranks;
  metrics.reduction_seconds = sums[6] / ranks;
  metrics.data_wait_share = sums[7] / ranks;  // of the step's seconds, once they are known
  metrics.fgram_nodes_per_token = sums[8] / batch_tokens;
  metrics.fgram_nodes_computed_per_token = sums[9] / batch_tokens;
  metrics.exchange_bytes = static_cast<std::int64_t>(sums[10]);
}

void Trainer::update_parameters(StepMetrics& metrics) {
  const Phase phase("parameter update");
  metrics.lr = learning_rate(config_, step_);
  metrics.skip_reason = bad_steps_.judge(metrics.loss, metrics.grad_norm);
  if (metrics.skipped()) return;
  const double clip = config_.optimizer.clip;
  const double scale = clip > 0 && metrics.grad_norm > clip ? clip / metrics.grad_norm : 1.0;
  ++updates_;
  main_optimizer_->step(updates_, metrics.lr, scale);
  if (has_fgrams())
    fgram_optimizer_->step(++fgram_updates_, metrics.lr * config_.optimizer.fgram_lr_ratio, scale);
}

void Trainer::count_work(StepMetrics& metrics) const {
  if (peak_ == 0) return;
  const ModelConfig& model = config_.model;
  const auto batch_tokens = static_cast<double>(config_.trainer.batch_tokens);
  const double attended = static_cast<double>(config_.trainer.sequence_length + 1) / 2;
  const double head =
      2.0 * static_cast<double>(width_) * static_cast<double>(model.vocabulary_size);
  const double main_flops =
      3 * batch_tokens * (forward_flops_per_token(model.main, attended) + head);
  metrics.main_peak_share = main_flops / metrics.main_seconds / peak_;
  if (!has_fgrams()) return;
  const double mean_depth = static_cast<double>(model.fgram.context + 1) / 2;
  const double fgram_flops = 3 * metrics.fgram_nodes_computed_per_token * batch_tokens *
                             forward_flops_per_token(model.fgram, mean_depth);
  metrics.fgram_peak_share = fgram_flops / metrics.fgram_seconds / peak_;
}

EvaluationResult Trainer::evaluate_validation() {
  const Phase phase("evaluation");
  return evaluate(
      *data_.validation, data_.vocabulary.get(), *main_model_, fgrams_.get(), width_, token_bytes_,
      {.sequence_length = config_.trainer.sequence_length,
       .microbatch_sequences = config_.trainer.microbatch_tokens / config_.trainer.sequence_length,
       .tokens = config_.trainer.eval_tokens,
       .attention_across_documents = config_.data.attention_across_documents},
      world_, grids_.main);
}

bool Trainer::wants_to_stop() const {
  const double limit = config_.run.time_limit;
  return stop_signal_.received() != 0 || (limit > 0 && seconds_since(start_) > limit);
}

bool Trainer::agree_on_stop() {
  return world_.all_reduce_value(wants_to_stop() ? 1.0 : 0.0, ReduceOp::max) > 0;
}

void Trainer::evaluate_and_log() {
  const EvaluationResult evaluation = evaluate_validation();
  validation_loss_ = evaluation.loss;
  spdlog::info(
      "step {} | validation loss {:.4f} | perplexity {:.2f} | {:.4f} bits/byte | {} tokens in {}",
      step_, evaluation.loss, evaluation.perplexity, evaluation.bits_per_byte, evaluation.tokens,
      format_duration(evaluation.seconds));
}

TrainingResult Trainer::run() {
  try {
    return run_steps();
  } catch (const std::exception& error) {
    // A slow disk may hold this rank longer than the others wait for it, and then nothing but their
    // messages would be seen.
    if (writer_->is_saving())
      spdlog::error("{} (this rank ends once its part of a checkpoint is written)", error.what());
    throw;
  }
}

TrainingResult Trainer::run_steps() {
  const auto run_start = Clock::now();
  const std::int64_t total = config_.total_steps();
  const std::int64_t first_step = step_;
  world_.barrier();
  peak_ = world_.all_reduce_value(measure_matrix_peak(backend_, main_parameters_.dtype()),
                                  ReduceOp::sum);
  print_start(peak_);
  open_logs();

  TrainingResult result;
  double step_seconds = 0;
  std::int64_t saved_step = first_step;
  bool save_is_due = false;
  auto due = [&](std::int64_t every) {
    return step_ == total || (every > 0 && step_ % every == 0);
  };
  while (step_ < total && !stop_requested_) {
    StepMetrics metrics = train_step();
    result.loss = metrics.loss;  // none where nothing was left to do
    step_seconds += metrics.step_seconds;
    // Who asks a run to stop gives it time for a checkpoint, not for an evaluation.
    if (data_.validation && due(config_.trainer.eval_every) && !stop_requested_) {
      evaluate_and_log();
      metrics.validation_loss = validation_loss_;
    }
    if (metrics_log_) metrics_log_->write(metrics);
    if (tensorboard_log_) tensorboard_log_->write(metrics);
    if (step_ == first_step + 1 || step_ == total || step_ % config_.logging.every == 0 ||
        metrics.skipped()) {
      const double mean = step_seconds / static_cast<double>(step_ - first_step);
      spdlog::info(
          describe(metrics, total, has_fgrams(), mean * static_cast<double>(total - step_)));
    }
    report_saves();
    if (metrics.skipped() && (config_.trainer.on_bad_step == BadStep::stop ||
                              bad_steps_.in_a_row() >= config_.trainer.bad_steps_in_a_row)) {
      writer_->wait();  // all ranks come here, and what is being saved is good
      report_saves();
      throw std::runtime_error(
          fmt::format("step {}: {} ({} bad steps in a row); lower optimizer.peak_lr or look at the "
                      "data",
                      step_, metrics.skip_reason, bad_steps_.in_a_row()));
    }
    // One more save would take about as long as the steps that it kept.
    if (stop_requested_ && step_ < total && finish_save_under_way()) break;
    // After a bad step once a good one has followed: checkpoints of a run that has gone wrong would
    // take the place of those before.
    save_is_due = save_is_due || due(config_.checkpoint.every);
    const bool may_wait = bad_steps_.in_a_row() > 0 && step_ < total &&
                          !is_permanent(step_, config_.checkpoint.permanent_every);
    if ((save_is_due && !may_wait) || stop_requested_) {
      save_checkpoint();
      save_is_due = false;
      saved_step = step_;
      if (!stop_requested_ && step_ < total && agree_on_stop()) {  // no step, and save, more
        stop_requested_ = true;
        if (!last_save_is_good()) save_checkpoint();
      }
    }
  }
  finish_checkpoint();
  if (data_.validation && step_ == total && step_ > first_step && stop_requested_)
    evaluate_and_log();
  result.stopped_early = stop_requested_ && step_ < total;
  if (result.stopped_early)
    spdlog::info(
        "stopped by {} after step {}, checkpoint of step {} saved; start again to go on",
        stop_signal_.received() != 0 ? "a signal" : "run.time_limit or another rank's signal",
        step_, saved_step);
  result.step = step_;
  result.tokens = tokens_;
  result.validation_loss = validation_loss_;
  result.seconds = seconds_since(run_start);
  return result;
}

}  // namespace scone
