#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "trainer/appended_file.h"

namespace scone {

/// One training step as it is logged. The same on every rank.
struct StepMetrics {
  std::int64_t step = 0;    // steps done, this one included
  std::int64_t tokens = 0;  // seen since the run's begin
  double loss = 0;          // mean natural-log cross-entropy of the batch's predicted tokens
  double lr = 0;
  double grad_norm = 0;     // over both models, before clipping
  std::string skip_reason;  // why the update was left out; empty: it was not
  bool skipped() const { return !skip_reason.empty(); }
  double step_seconds = 0;
  double tokens_per_second = 0;
  double main_peak_share =
      0;  // FLOP/s while the main model ran, over the measured peak of the ranks together
  double fgram_peak_share = 0;  // likewise for the f-gram model
  // Means over the ranks. exchange: f-gram rows and their gradients, and tokens for the f-gram
  // model, waiting included; reduction: of gradients, beyond what the backward pass hid.
  double main_seconds = 0, fgram_seconds = 0, exchange_seconds = 0, reduction_seconds = 0;
  std::int64_t exchange_bytes = 0;   // sent between ranks, of all together
  double fgram_nodes_per_token = 0;  // distinct trie nodes of the global batch over its tokens
  double fgram_nodes_computed_per_token = 0;  // repeats by owner and chunk included
  double data_wait_share = 0;                 // of step_seconds
  std::optional<double> validation_loss;
  double wall_time = 0;  // seconds since 1970 at the step's end
};

/// The object that metrics.jsonl has of a step.
nlohmann::json to_json(const StepMetrics& metrics);

/// metrics.jsonl: one object a step, appended at once.
class MetricsLog {
 public:
  /// Keeps the lines of steps <= last_step that a resumed run's file has, drops later ones. Throws
  /// InputError where the file cannot be read or written, and leaves it as it was.
  MetricsLog(const std::filesystem::path& file, std::int64_t last_step);
  /// On a full disk: see AppendedFile.
  void write(const StepMetrics& metrics);

 private:
  std::optional<AppendedFile> out_;
};

/// One readable line, ETA for `steps_left` more included.
std::string describe(const StepMetrics& metrics, std::int64_t total_steps, bool with_fgrams,
                     double seconds_left);

/// "1h 02m", "3m 10s", "4.2s".
std::string format_duration(double seconds);

}  // namespace scone
