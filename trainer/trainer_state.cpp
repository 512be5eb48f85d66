// The parts of Trainer that save, resume and describe a run.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <sstream>

#include "checkpoint/checkpoint.h"
#include "data/shard_list.h"
#include "data/tokenizer.h"
#include "parallel/agreed_errors.h"
#include "parallel/error.h"
#include "parallel/watchdog.h"
#include "trainer/replica_check.h"
#include "trainer/resume_settings.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

double mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

nlohmann::json shards_json(const TokenMixture& mixture) {
  nlohmann::json shards = nlohmann::json::array();
  for (std::int64_t c = 0; c < mixture.size(); ++c) {
    for (const ShardInfo& shard : mixture.corpus(c).shards())
      shards.push_back({shard.path.string(), shard.tokens, shard.checksum});
  }
  return shards;
}

std::vector<ListedShard> listed_shards(const nlohmann::json& data) {
  std::vector<ListedShard> shards;
  for (const auto& shard : data.value("shards", nlohmann::json::array()))
    shards.push_back({shard.at(0), shard.at(1), shard.at(2)});
  return shards;
}

/// How the training data differ from those of a checkpoint, a line each; empty: not at all.
std::vector<std::string> data_changes(const nlohmann::json& saved, const nlohmann::json& own) {
  if (saved.at("corpus_fingerprint") == own.at("corpus_fingerprint")) return {};
  const auto listed = listed_shards(saved);
  auto changes =
      listed.empty() ? std::vector<std::string>() : shard_changes(listed, listed_shards(own));
  if (changes.empty())
    changes.push_back(
        fmt::format("fingerprint {}, before {}: other shards, or a mixture of other weights",
                    own.at("corpus_fingerprint").get<std::string>(),
                    saved.at("corpus_fingerprint").get<std::string>()));
  return changes;
}

}  // namespace

std::vector<TensorSlice> Trainer::state(bool for_writing, bool with_fgrams) {
  std::vector<TensorSlice> slices = main_optimizer_->state(for_writing);
  if (with_fgrams) {
    const auto of_fgrams = fgram_optimizer_->state(for_writing);
    slices.insert(slices.end(), of_fgrams.begin(), of_fgrams.end());
  }
  return slices;
}

CheckpointManifest Trainer::manifest() const {
  CheckpointManifest manifest;
  manifest.step = step_;
  manifest.tokens = tokens_;
  manifest.model = config_.model;
  manifest.run = {{"yaml", to_yaml(config_)},
                  {"updates", updates_},
                  {"fgram_updates", fgram_updates_},
                  {"bad_steps", bad_steps_.state()},
                  {"ranks", world_.size()},
                  {"grids",
                   {{"main", {grids_.main.tensor_size(), grids_.main.data_size()}},
                    {"fgram", {grids_.fgram.tensor_size(), grids_.fgram.data_size()}}}},
                  {"seed", config_.run.seed},
                  {"sequence_length", config_.trainer.sequence_length},
                  {"batch_tokens", config_.trainer.batch_tokens},
                  {"attention_across_documents", config_.data.attention_across_documents}};
  manifest.data = {{"epoch", data_state_.epoch},
                   {"sample", data_state_.sample},
                   {"corpus_fingerprint", data_.train->fingerprint()},
                   {"shards", shards_json(*data_.train)},
                   {"tokenizer", data_.tokenizer->file().string()},
                   {"tokenizer_fingerprint", data_.train->tokenizer_fingerprint()}};
  if (data_.vocabulary)
    manifest.fgrams = {
        {"vocabulary", std::filesystem::absolute(config_.fgrams.vocabulary).string()},
        {"size", data_.vocabulary->size()},
        {"max_length", data_.vocabulary->max_length()},
        {"fingerprint", data_.vocabulary->fingerprint()}};
  return manifest;
}

void Trainer::save_checkpoint() {
  const Phase phase("checkpoint");
  if (config_.checkpoint.check_replicas) {
    check_replicas(main_parameters_, grids_.main, backend_, world_);
    if (has_fgrams()) check_replicas(fgram_parameters_, grids_.fgram, backend_, world_);
  }
  writer_->save(manifest(), state(true, has_fgrams()));
  report_saves();
}

void Trainer::report_saves() {
  while (const auto outcome = writer_->take_outcome()) {
    save_error_ = outcome->error;
    if (world_.rank() != 0) continue;
    if (!outcome->saved())
      spdlog::warn("checkpoint of step {} was not saved, the ones before it stay: {}",
                   outcome->step, outcome->error);
    else
      spdlog::info("checkpoint {}, {:.1f} MB in {}", outcome->path.string(),
                   static_cast<double>(outcome->bytes) / 1e6, format_duration(outcome->seconds));
    if (!outcome->warning.empty()) spdlog::warn("checkpoint: {}", outcome->warning);
  }
}

bool Trainer::finish_save_under_way() {
  return world_.all_reduce_value(writer_->is_saving() ? 1.0 : 0.0, ReduceOp::max) > 0 &&
         last_save_is_good();
}

bool Trainer::last_save_is_good() {
  writer_->wait();
  report_saves();
  return save_error_.empty();
}

void Trainer::finish_checkpoint() {
  if (!last_save_is_good())
    throw std::runtime_error(fmt::format(
        "the last checkpoint was not saved: {}; start again, to go on from the one before it where "
        "there is one",
        save_error_));
}

void Trainer::resume() {
  if (!data_.changes.empty() && world_.rank() == 0)
    spdlog::warn("shards are not those of the list beside them, which is allowed:{}",
                 format_changes(data_.changes));
  // One rank chooses, so that all read the same checkpoint.
  std::string chosen;
  if (world_.rank() == 0) {
    std::vector<std::string> skipped;
    const auto found = find_checkpoint(config_.run.folder, &skipped);
    for (const auto& line : skipped) spdlog::warn("skipped {}", line);
    if (found) chosen = found->string();
    if (!found && !skipped.empty())
      throw InputError(
          fmt::format("{}: no valid checkpoint among {}: {}; remove them to start anew",
                      config_.run.folder, skipped.size(), fmt::join(skipped, "; ")));
  }
  chosen = world_.broadcast_string(chosen, 0);
  if (!chosen.empty()) restore(chosen, read_manifest(chosen));
}

void Trainer::restore(const std::filesystem::path& checkpoint, const CheckpointManifest& saved) {
  const CheckpointManifest own = manifest();
  check_settings(checkpoint, saved, own, config_.trainer.tokens > 0);
  if (!saved.run.value("imported", false))  // of `scone import`: only the model is given
    check_data(checkpoint, data_changes(saved.data, own.data));
  const bool had_fgrams = saved.model.at("fgram").at("layers").get<std::int64_t>() > 0;
  const bool both_have_fgrams = had_fgrams && has_fgrams();
  read_slices(checkpoint, state(false, both_have_fgrams));
  step_ = saved.step;
  tokens_ = saved.tokens;
  updates_ = saved.run.at("updates");
  main_optimizer_->take_state(updates_);
  if (both_have_fgrams) {
    fgram_updates_ = saved.run.value("fgram_updates", updates_);
    fgram_optimizer_->take_state(fgram_updates_);
  }
  data_state_ = {saved.data.at("epoch"), saved.data.at("sample")};
  const std::int64_t samples =
      SampleOrder(*data_.train, config_.trainer.sequence_length, config_.run.seed, true)
          .samples_per_epoch();
  if (config_.data.allow_changed && data_state_.sample > samples)  // of fewer data than before
    data_state_ = {data_state_.epoch + 1, 0};
  if (saved.run.contains("bad_steps")) bad_steps_.restore(saved.run.at("bad_steps"));
  if (world_.rank() != 0) return;
  spdlog::info("resumed from {} at step {}", checkpoint.string(), step_);
  if (had_fgrams != has_fgrams())
    spdlog::warn("{}: {}", checkpoint.string(),
                 had_fgrams ? "its f-gram model is dropped (model.fgram.layers is 0)"
                            : "holds no f-gram model; this run's begins anew");
}

void Trainer::check_data(const std::filesystem::path& checkpoint,
                         const std::vector<std::string>& changes) const {
  if (changes.empty()) return;
  if (!config_.data.allow_changed)
    throw InputError(fmt::format(
        "{}: data.train is not what the run began with:{}\nset it back, give this run a run.folder "
        "of its own, or go on with --allow-changed-data (at the same place of the new data's "
        "order)",
        checkpoint.string(), format_changes(changes)));
  if (world_.rank() == 0)
    spdlog::warn("{}: data.train is not what the run began with, which is allowed:{}",
                 checkpoint.string(), format_changes(changes));
}

void Trainer::open_logs() {
  run_agreed(world_, [&] {
    if (world_.rank() != 0) return;
    const std::filesystem::path folder = config_.run.folder;
    metrics_log_ = std::make_unique<MetricsLog>(folder / config_.logging.metrics, step_);
    if (config_.logging.tensorboard)
      tensorboard_log_ = std::make_unique<TensorboardLog>(folder / "tensorboard", step_);
  });
}

MemoryUse Trainer::memory_use() const {
  const auto of_model = [](const ParameterSet& parameters, const DistributedOptimizer& optimizer,
                           std::size_t activations) {
    return MemoryUse::Model{parameters.flat_values().bytes() + parameters.flat_working().bytes(),
                            parameters.flat_gradients().bytes() + optimizer.gradient_bytes(),
                            optimizer.moment_bytes(), activations};
  };
  MemoryUse use;
  use.main = of_model(main_parameters_, *main_optimizer_, main_model_->activation_bytes());
  if (has_fgrams())
    use.fgram = of_model(fgram_parameters_, *fgram_optimizer_, fgram_model_->activation_bytes());
  return use;
}

void Trainer::print_start(double peak) const {
  if (world_.rank() != 0) return;
  std::istringstream yaml(to_yaml(config_));
  std::string text = "configuration";
  for (std::string line; std::getline(yaml, line);) {
    line = line.substr(0, line.find("  #"));
    if (line.find_first_not_of(' ') == std::string::npos ||
        line[line.find_first_not_of(' ')] == '#')
      continue;
    text += "\n  " + line;
  }
  spdlog::info(text);

  const MemoryUse use = memory_use();
  std::string table = fmt::format("memory of each rank, MiB {:>14}{:>14}", "main", "f-gram");
  auto row = [&](const char* name, std::size_t of_main, std::size_t of_fgram) {
    table +=
        fmt::format("\n  {:<22} {:>14.1f}{:>14.1f}", name, mebibytes(of_main), mebibytes(of_fgram));
  };
  row("parameters", use.main.parameters, use.fgram.parameters);
  row("gradients", use.main.gradients, use.fgram.gradients);
  row("AdamW moments", use.main.moments, use.fgram.moments);
  row("activations", use.main.activations, use.fgram.activations);
  // Of f-gram rows and their gradients: here, at their owner, in the exchange's buffers and at
  // their nodes; a position asks for one at most.
  const std::int64_t positions = config_.trainer.batch_tokens / world_.size();  // a rank's share
  const std::size_t row_bytes = has_fgrams() ? static_cast<std::size_t>(positions * width_) *
                                                   sizeof(float) * (world_.size() > 1 ? 6 : 4)
                                             : 0;
  row("f-gram rows, at most", 0, row_bytes);
  row("sum", use.main.sum(), use.fgram.sum() + row_bytes);
  spdlog::info(table);

  for (const ProcessGrid* grid : {&grids_.main, &grids_.fgram}) {
    if (grid == &grids_.fgram && !has_fgrams()) continue;
    const GridConfig& sharding =
        grid == &grids_.main ? config_.parallel.main : config_.parallel.fgram;
    spdlog::info(
        "{} model on tp {} x dp {}{}{}", grid->model() == "main" ? "main" : "f-gram",
        grid->tensor_size(), grid->data_size(),
        sharding.zero > 0 ? ", optimizer state cut over dp (ZeRO-1)" : "",
        sharding.sequence_parallel && grid->tensor_size() > 1 ? ", sequence parallel" : "");
    if (grid->tensor_crosses_nodes())
      spdlog::warn(
          "parallel.{}.tp {}: some tensor-parallel groups have ranks on several nodes, which is "
          "slow; choose a tp that divides the ranks of a node",
          grid->model(), grid->tensor_size());
  }
  const ModelConfig& model = config_.model;
  const std::int64_t embedding = model.vocabulary_size * width_;
  const std::int64_t main_count = global_elements(main_parameters_.specs());
  spdlog::info(
      "main model {:.2f}M parameters ({:.2f}M without token embedding), f-gram model {:.2f}M",
      static_cast<double>(main_count) / 1e6, static_cast<double>(main_count - embedding) / 1e6,
      has_fgrams() ? static_cast<double>(global_elements(fgram_parameters_.specs())) / 1e6 : 0.0);
  spdlog::info(
      "data {} tokens in {} documents{}; {} steps of {} tokens on {}; matrix peak {:.0f} GFLOP/s",
      data_.train->tokens(), data_.train->documents(),
      data_.vocabulary ? fmt::format(", {} f-grams up to length {}", data_.vocabulary->size(),
                                     data_.vocabulary->max_length())
                       : std::string(", no f-grams"),
      config_.total_steps(), config_.trainer.batch_tokens, world_.describe(), peak / 1e9);
}

}  // namespace scone
