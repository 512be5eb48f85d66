#include "trainer/metrics.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "checkpoint/durable_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

/// Copies the lines of steps <= last_step. Throws std::runtime_error.
void copy_steps(const fs::path& from, std::int64_t last_step, const fs::path& to) {
  std::ofstream kept(to, std::ios::trunc);
  if (fs::exists(from)) {
    std::ifstream in(from);
    if (!in) throw std::runtime_error("what it holds cannot be read");
    for (std::string line; last_step > 0 && std::getline(in, line);) {
      const auto json = nlohmann::json::parse(line, nullptr, false);
      const bool has_step =
          json.is_object() && json.contains("step") && json["step"].is_number_integer();
      if (has_step && json["step"].get<std::int64_t>() <= last_step) kept << line << '\n';
    }
    if (in.bad()) throw std::runtime_error("what it holds cannot be read to its end");
  }
  kept.close();
  if (!kept) throw std::runtime_error(std::strerror(errno));
}

}  // namespace

MetricsLog::MetricsLog(const fs::path& file, std::int64_t last_step) {
  try {
    if (fs::is_directory(file)) throw std::runtime_error("it is a folder");
    // The lines to keep go into a new file that takes the old one's place, so that neither a kill
    // nor a crash of the machine loses them.
    const fs::path fresh = file.string() + ".new";
    copy_steps(file, last_step, fresh);
    sync_path(fresh);
    fs::rename(fresh, file);
    out_.emplace(file, false);
  } catch (const std::exception& error) {
    throw InputError(
        fmt::format("logging.metrics: {} cannot be written: {}; give another name, or make room",
                    file.string(), error.what()));
  }
}

nlohmann::json to_json(const StepMetrics& m) {
  nlohmann::json json = {{"step", m.step},
                         {"tokens", m.tokens},
                         {"loss", m.loss},
                         {"lr", m.lr},
                         {"grad_norm", m.grad_norm},
                         {"step_seconds", m.step_seconds},
                         {"tokens_per_second", m.tokens_per_second},
                         {"main_peak_share", m.main_peak_share},
                         {"fgram_peak_share", m.fgram_peak_share},
                         {"main_seconds", m.main_seconds},
                         {"fgram_seconds", m.fgram_seconds},
                         {"exchange_seconds", m.exchange_seconds},
                         {"exchange_bytes", m.exchange_bytes},
                         {"reduction_seconds", m.reduction_seconds},
                         {"fgram_nodes_per_token", m.fgram_nodes_per_token},
                         {"fgram_nodes_computed_per_token", m.fgram_nodes_computed_per_token},
                         {"data_wait_share", m.data_wait_share}};
  if (m.skipped()) json["skipped"] = m.skip_reason;
  if (m.validation_loss) json["validation_loss"] = *m.validation_loss;
  return json;
}

void MetricsLog::write(const StepMetrics& metrics) { out_->add(to_json(metrics).dump() + '\n'); }

std::string describe(const StepMetrics& m, std::int64_t total_steps, bool with_fgrams,
                     double seconds_left) {
  std::string line = fmt::format(
      "step {:>{}}/{} | loss {:.4f} | lr {:.2e} | grad {:.3f} | {:.0f} tok/s | main {:.0f}%",
      m.step, std::to_string(total_steps).size(), total_steps, m.loss, m.lr, m.grad_norm,
      m.tokens_per_second, 100 * m.main_peak_share);
  if (with_fgrams)
    line += fmt::format(" fgram {:.0f}% of peak | {:.3f} nodes/tok", 100 * m.fgram_peak_share,
                        m.fgram_nodes_per_token);
  else
    line += " of peak";
  line += fmt::format(" | ETA {}", format_duration(seconds_left));
  if (m.skipped()) line += " | update skipped: " + m.skip_reason;
  return line;
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (seconds < 60) return fmt::format("{:.1f}s", seconds);
  if (whole < 3600) return fmt::format("{}m {:02}s", whole / 60, whole % 60);
  return fmt::format("{}h {:02}m", whole / 3600, whole / 60 % 60);
}

}  // namespace scone
