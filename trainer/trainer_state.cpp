// The parts of Trainer that save, resume and describe a run.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <fstream>
#include <sstream>

#include "data/tokenizer.h"
#include "parallel/error.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

std::int64_t parameter_count(const ParameterSet& parameters) {
  std::int64_t count = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) count += parameters.value(i).elements();
  return count;
}

double mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

/// Throws InputError unless a checkpoint's value equals this run's.
void expect_equal(const std::filesystem::path& checkpoint, const std::string& what,
                  const nlohmann::json& saved, const nlohmann::json& configured) {
  if (saved == configured) return;
  if (saved.is_object() && configured.is_object()) {  // name the keys that differ
    for (const auto& [key, value] : saved.items())
      if (configured.contains(key))
        expect_equal(checkpoint, what + "." + key, value, configured.at(key));
  }
  throw InputError(
      fmt::format("{}: was written by a run with another {} ({}), this run has {}; give this run a "
                  "run.folder of its own, or set {} back",
                  checkpoint.string(), what, saved.dump(), configured.dump(), what));
}

}  // namespace

std::vector<NamedTensor> Trainer::state_tensors() const {
  std::vector<NamedTensor> tensors;
  auto add = [&](const ParameterSet& parameters, const AdamW& optimizer) {
    for (std::size_t i = 0; i < parameters.size(); ++i)
      tensors.push_back({"parameters/" + parameters.spec(i).name, parameters.value(i)});
    const auto moments = optimizer.state();
    tensors.insert(tensors.end(), moments.begin(), moments.end());
  };
  add(main_parameters_, *main_optimizer_);
  if (has_fgrams()) add(fgram_parameters_, *fgram_optimizer_);
  return tensors;
}

CheckpointManifest Trainer::manifest() const {
  CheckpointManifest manifest;
  manifest.step = step_;
  manifest.tokens = tokens_;
  manifest.model = config_.model;
  manifest.run = {{"yaml", to_yaml(config_)},
                  {"updates", updates_},
                  {"seed", config_.run.seed},
                  {"sequence_length", config_.trainer.sequence_length},
                  {"batch_tokens", config_.trainer.batch_tokens},
                  {"attention_across_documents", config_.data.attention_across_documents}};
  manifest.data = {{"epoch", data_state_.epoch},
                   {"sample", data_state_.sample},
                   {"corpus_fingerprint", data_.train->fingerprint()},
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
  if (world_.rank() == 0) {
    const auto path = write_checkpoint(std::filesystem::path(config_.run.folder) / "checkpoints",
                                       manifest(), state_tensors(), config_.checkpoint.keep);
    spdlog::info("checkpoint {}", path.string());
  }
  world_.barrier();
}

void Trainer::resume() {
  // One rank chooses, so that all read the same checkpoint.
  std::string chosen;
  if (world_.rank() == 0) {
    std::vector<std::string> skipped;
    const auto found = find_checkpoint(config_.run.folder, &skipped);
    for (const auto& line : skipped) spdlog::warn("skipped {}", line);
    if (found) chosen = found->string();
    if (!found && !skipped.empty())
      throw InputError(fmt::format("{}: no valid checkpoint among {}; remove them to start anew",
                                   config_.run.folder, skipped.size()));
  }
  chosen = world_.broadcast_string(chosen, 0);
  if (chosen.empty()) return;
  const CheckpointManifest saved = read_manifest(chosen);
  const CheckpointManifest own = manifest();
  auto shape_of_model = [](nlohmann::json model) {  // without what only bounds memory
    model.erase("fgram_recompute");
    model.erase("fgram_chunk_nodes");
    return model;
  };
  expect_equal(chosen, "model", shape_of_model(saved.model), shape_of_model(own.model));
  expect_equal(chosen, "tokenizer", saved.data.at("tokenizer_fingerprint"),
               own.data.at("tokenizer_fingerprint"));
  if (!saved.run.value("imported", false)) {  // of `scone import`: only the model is given
    expect_equal(chosen, "run.seed", saved.run.at("seed"), own.run.at("seed"));
    expect_equal(chosen, "trainer.sequence_length", saved.run.at("sequence_length"),
                 own.run.at("sequence_length"));
    expect_equal(chosen, "data.attention_across_documents",
                 saved.run.at("attention_across_documents"),
                 own.run.at("attention_across_documents"));
    expect_equal(chosen, "data.train", saved.data.at("corpus_fingerprint"),
                 own.data.at("corpus_fingerprint"));
    if (data_.vocabulary)
      expect_equal(chosen, "fgrams.vocabulary", saved.fgrams.at("fingerprint"),
                   own.fgrams.at("fingerprint"));
  }
  read_tensors(chosen, state_tensors());
  step_ = saved.step;
  tokens_ = saved.tokens;
  updates_ = saved.run.at("updates");
  data_state_ = {saved.data.at("epoch"), saved.data.at("sample")};
  spdlog::info("resumed from {} at step {}", chosen, step_);
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

  const std::size_t main_bytes = main_parameters_.flat_values().bytes();
  const std::size_t fgram_bytes = has_fgrams() ? fgram_parameters_.flat_values().bytes() : 0;
  const std::size_t adam_main = main_optimizer_->bytes();
  const std::size_t adam_fgram = has_fgrams() ? fgram_optimizer_->bytes() : 0;
  const std::size_t activations_main = main_model_->activation_bytes();
  const std::size_t activations_fgram = has_fgrams() ? fgram_model_->activation_bytes() : 0;
  std::string table = fmt::format("memory of each rank, MiB {:>14}{:>14}", "main", "f-gram");
  auto row = [&](const char* name, std::size_t of_main, std::size_t of_fgram) {
    table +=
        fmt::format("\n  {:<22} {:>14.1f}{:>14.1f}", name, mebibytes(of_main), mebibytes(of_fgram));
  };
  row("parameters", main_bytes, fgram_bytes);
  row("gradients", main_bytes, fgram_bytes);
  row("AdamW moments", adam_main, adam_fgram);
  row("activations", activations_main, activations_fgram);
  // Of f-gram rows and their gradients: here, at their owner, in the exchange's buffers and at
  // their nodes; a position asks for one at most.
  const std::int64_t positions = config_.trainer.batch_tokens / world_.size();
  const std::size_t row_bytes = has_fgrams() ? static_cast<std::size_t>(positions * width_) *
                                                   sizeof(float) * (world_.size() > 1 ? 6 : 4)
                                             : 0;
  row("f-gram rows, at most", 0, row_bytes);
  row("sum", 2 * main_bytes + adam_main + activations_main,
      2 * fgram_bytes + adam_fgram + activations_fgram + row_bytes);
  spdlog::info(table);

  const std::int64_t embedding =
      main_parameters_.value(main_parameters_.find("main.token_embedding")).elements();
  const std::int64_t main_count = parameter_count(main_parameters_);
  spdlog::info(
      "main model {:.2f}M parameters ({:.2f}M without token embedding), f-gram model {:.2f}M",
      static_cast<double>(main_count) / 1e6, static_cast<double>(main_count - embedding) / 1e6,
      has_fgrams() ? static_cast<double>(parameter_count(fgram_parameters_)) / 1e6 : 0.0);
  spdlog::info(
      "data {} tokens in {} documents{}; {} steps of {} tokens on {}; matrix peak {:.0f} GFLOP/s",
      data_.train->tokens(), data_.train->documents(),
      data_.vocabulary ? fmt::format(", {} f-grams up to length {}", data_.vocabulary->size(),
                                     data_.vocabulary->max_length())
                       : std::string(", no f-grams"),
      config_.total_steps(), config_.trainer.batch_tokens, world_.describe(), peak / 1e9);
}

}  // namespace scone
