#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/tensor.h"

namespace scone {

enum class Schedule { cosine, wsd, constant };
enum class Transport { mpi, nccl };
enum class BadStep { skip, stop };

/// A grid's sharding as YAML gives it. dp = ranks / tp.
struct GridConfig {
  int tp = 1;
  int zero = 0;
  bool sequence_parallel = false;
};

/// Everything a run is configured with; member names are the YAML keys. Defaults are those that
/// --print-config prints. Values are resolved: model.fgram's unset keys have model.main's values,
/// relative paths are kept as given.
struct RunConfig {
  struct {
    std::string folder;
    std::uint64_t seed = 1;
    double time_limit = 0;  // seconds; 0: none
  } run;
  struct {
    std::vector<std::string> train;       // shard files or folders
    std::vector<double> train_weights;    // of each of train, then a corpus by itself; empty: train
                                          // is one corpus. Part of the key data.train
    std::vector<std::string> validation;  // empty: no evaluation
    int prefetch = 2;
    bool attention_across_documents = false;
    bool allow_changed = false;  // no key: --allow-changed-data, for one start
  } data;
  struct {
    std::string vocabulary;  // file of `scone fgrams`; needed where model.fgram.layers > 0
    std::int64_t size = 0;   // first S f-grams; 0: all
    int max_length = 0;      // 0: the file's
    bool share = true;       // false: every match is computed by itself
  } fgrams;
  /// vocabulary_size and fgram.context are filled in from the data when the run starts.
  ModelConfig model;
  struct {
    GridConfig main, fgram;
    Transport communicator = Transport::mpi;
    bool overlap = true;
    std::int64_t bucket_elements = 1 << 20;
    double timeout = 600;  // seconds; 0: none
  } parallel;
  struct {
    Device device = Device::cpu;
    DType dtype = DType::fp32;
    int threads = 0;  // of each rank; 0: default_threads
    Recompute recompute = Recompute::none;
  } compute;
  struct {
    double peak_lr = 6e-4;
    double fgram_lr_ratio = 1;  // the f-gram model's learning rate over everything else's
    std::vector<double> betas = {0.9, 0.95};
    double epsilon = 1e-8;
    double weight_decay = 0.1;
    double clip = 1.0;  // global gradient norm over both models; 0: none
    Schedule schedule = Schedule::cosine;
    std::int64_t warmup_steps = 0;
    double final_lr_ratio = 0.1;
    double decay_fraction = 0.2;  // wsd: last share of the steps in which lr falls
    bool stochastic_rounding = false;
  } optimizer;
  struct {
    std::int64_t steps = 0;  // exactly one of steps and tokens is given
    std::int64_t tokens = 0;
    std::int64_t batch_tokens = 0;  // of the global batch
    std::int64_t microbatch_tokens =
        0;  // of a rank; 0: sequence_length * 8 or the rank's share, whichever is less
    std::int64_t sequence_length = 0;  // 0: model.main.context
    std::int64_t eval_every = 0;       // steps; 0: only at the end
    std::int64_t eval_tokens = 0;      // 0: all of the validation data
    BadStep on_bad_step = BadStep::skip;
    double bad_step_sigma = 0;  // 0: only what is not finite is bad
    std::int64_t bad_step_window = 128;
    std::int64_t bad_steps_in_a_row = 10;
  } trainer;
  struct {
    std::int64_t every = 0;  // steps; 0: only at the end
    int keep = 2;
    std::int64_t permanent_every = 0;  // steps; 0: none
    bool async = false;
    bool check_replicas = true;
  } checkpoint;
  struct {
    std::int64_t every = 10;
    std::string metrics = "metrics.jsonl";  // in run.folder
    bool tensorboard = false;
  } logging;

  /// Steps of the whole run.
  std::int64_t total_steps() const;
};

/// Whether a run must be one that this build can do, with its CUDA and NCCL, or is only thought of.
enum class RunsOn { this_build, any_build };

/// Reads a strict YAML file and applies "dotted.key=value" overrides (values parsed as YAML).
/// Validates everything that needs no data and `ranks`. Throws InputError with file, line, dotted
/// key and the nearest valid key.
RunConfig load_run_config(const std::filesystem::path& file,
                          const std::vector<std::string>& overrides, int ranks,
                          RunsOn runs_on = RunsOn::this_build);

/// The resolved configuration as YAML, every key with its value and a comment. Reading it back
/// gives an equal configuration.
std::string to_yaml(const RunConfig& config);

}  // namespace scone
