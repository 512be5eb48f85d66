#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "checkpoint/checkpoint_writer.h"
#include "data/batch_stream.h"
#include "model/fgram_model.h"
#include "model/main_model.h"
#include "parallel/communicator.h"
#include "parallel/traffic.h"
#include "trainer/bad_steps.h"
#include "trainer/distributed_optimizer.h"
#include "trainer/embedding_source.h"
#include "trainer/evaluation.h"
#include "trainer/metrics.h"
#include "trainer/run_config.h"
#include "trainer/run_data.h"
#include "trainer/stop_signal.h"
#include "trainer/tensorboard/tensorboard_log.h"

namespace scone {

/// What a run came to; the same on every rank.
struct TrainingResult {
  std::int64_t step = 0, tokens = 0;
  std::optional<double> loss;             // of the last step; none: no step was left
  std::optional<double> validation_loss;  // of the last evaluation
  bool stopped_early = false;             // by a signal or run.time_limit, with a checkpoint saved
  double seconds = 0;
};

/// Bytes of one rank's tensors, by model; those of f-gram rows and batches left out.
struct MemoryUse {
  struct Model {
    std::size_t parameters = 0, gradients = 0, moments = 0, activations = 0;
    std::size_t sum() const { return parameters + gradients + moments + activations; }
  };
  Model main, fgram;
};

/// Trains the two models of a run, each over its own grid of the ranks of `world`. Every method is
/// collective over it.
class Trainer {
 public:
  /// Opens the data, makes this rank's part of both models, and resumes from the newest valid
  /// checkpoint of run.folder where there is one, of whatever grids; one without the f-gram model
  /// begins that anew, one with it may be resumed without. Throws InputError for unfit data, for
  /// grids that the ranks or the models do not fit, or a checkpoint of another model or other data.
  Trainer(RunConfig config, Backend& backend, Communicator& world);
  ~Trainer();

  /// The remaining steps, with evaluations and checkpoints. Throws std::runtime_error at a bad step
  /// with on_bad_step: stop.
  TrainingResult run();

  /// One step on the next batch of the stream (for run and tests).
  StepMetrics train_step();
  EvaluationResult evaluate_validation();
  /// Saves, in the background with checkpoint.async. A save that fails is a warning. Throws
  /// std::runtime_error, before anything is written, where replicas differ (check_replicas).
  void save_checkpoint();
  /// Waits for a save in the background. Throws std::runtime_error where the last one failed.
  void finish_checkpoint();

  /// hook(step) is called in the middle of each step, with the step's number, between the backward
  /// passes of the two models: for injected faults.
  void call_in_step(std::function<void(std::int64_t step)> hook) { in_step_ = std::move(hook); }

  const RunConfig& config() const { return config_; }
  /// On this rank now. Not collective.
  MemoryUse memory_use() const;
  /// What this rank's collectives have moved in the training steps so far, those of the batch
  /// stream's thread left out.
  const Traffic& step_traffic() const { return step_traffic_; }
  const RunGrids& grids() const { return grids_; }
  ParameterSet& main_parameters() { return main_parameters_; }
  ParameterSet& fgram_parameters() { return fgram_parameters_; }  // empty for a baseline
  DistributedOptimizer& main_optimizer() { return *main_optimizer_; }
  DistributedOptimizer& fgram_optimizer() { return *fgram_optimizer_; }

 private:
  TrainingResult run_steps();
  /// On validation data: into validation_loss_, and the log.
  void evaluate_and_log();
  bool has_fgrams() const { return fgram_model_ != nullptr; }
  void print_start(double peak) const;
  void resume();
  /// Reads what a checkpoint holds of this run's state.
  void restore(const std::filesystem::path& checkpoint, const CheckpointManifest& saved);
  /// Throws InputError where the data changed since a checkpoint, or warns where that is allowed.
  void check_data(const std::filesystem::path& checkpoint,
                  const std::vector<std::string>& changes) const;
  /// Whether a save in the background ended well, waited for; false where none was under way on any
  /// rank. Collective.
  bool finish_save_under_way();
  /// Whether the last save ended well; waits for one under way.
  bool last_save_is_good();
  /// Whether any rank has reason to end the run. Collective.
  bool agree_on_stop();
  /// This rank got a signal, or run.time_limit is over.
  bool wants_to_stop() const;
  /// Logs how saves ended, if any have since the last call.
  void report_saves();
  /// Begins the files of metrics. Throws InputError, on all ranks, where they cannot be written.
  void open_logs();
  CheckpointManifest manifest() const;
  /// Boxes of parameters and moments; see DistributedOptimizer::state.
  std::vector<TensorSlice> state(bool for_writing, bool with_fgrams);
  OptimizerSettings optimizer_settings(const GridConfig& grid) const;
  // The parts of train_step, in order; each adds its seconds to the metrics.
  /// Forward and backward of all microbatches; returns this rank's sum of losses. Receives rows and
  /// sends row gradients as they are needed and done.
  double run_main_model(const Batch& batch, float loss_scale, StepMetrics& metrics);
  void backward_fgrams(StepMetrics& metrics);
  /// Sums gradients, and what the metrics need, over the ranks. Sets loss, gradient norm, seconds
  /// and counts of nodes.
  void reduce(const Batch& batch, double loss_sum, std::int64_t targets, StepMetrics& metrics);
  void update_parameters(StepMetrics& metrics);
  void count_work(StepMetrics& metrics) const;

  RunConfig config_;
  Backend& backend_;
  Traffic traffic_, step_traffic_;  // of all that this thread does, and of training steps alone
  std::unique_ptr<Communicator> counted_world_;
  Communicator& world_;
  RunGrids grids_;
  StopSignal stop_signal_;
  RunData data_;
  std::int64_t width_ = 0;
  ParameterSet main_parameters_, fgram_parameters_;
  std::unique_ptr<MainModel> main_model_;
  std::unique_ptr<FgramModel> fgram_model_;
  std::unique_ptr<LiveFgramSource> fgrams_;
  std::unique_ptr<DistributedOptimizer> main_optimizer_, fgram_optimizer_;
  std::unique_ptr<FgramPlanner> planner_;  // used by the batch stream's thread
  std::unique_ptr<BatchStream> batches_;
  std::unique_ptr<CheckpointWriter> writer_;
  std::unique_ptr<MetricsLog> metrics_log_;          // on rank 0
  std::unique_ptr<TensorboardLog> tensorboard_log_;  // on rank 0, where logging.tensorboard
  std::vector<std::int32_t> token_bytes_;

  std::int64_t step_ = 0, tokens_ = 0;
  std::int64_t updates_ = 0;        // steps that were not skipped
  std::int64_t fgram_updates_ = 0;  // of them those of the f-gram model, which may join a baseline
  BadSteps bad_steps_;
  std::string save_error_;  // of the last save that has ended
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  DataState data_state_;
  double peak_ = 0;  // FLOP/s of all ranks together
  bool stop_requested_ = false;
  std::function<void(std::int64_t)> in_step_;
  std::optional<double> validation_loss_;
  Batch batch_;  // of the step; its memory is used again
  Tensor rows_buffer_, row_gradients_buffer_;
};

}  // namespace scone
