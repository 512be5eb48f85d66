#include "launch/sweep/sweep_status.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <map>

#include "checkpoint/durable_file.h"
#include "launch/run_lock.h"
#include "launch/sweep/slurm_launcher.h"
#include "parallel/error.h"
#include "trainer/metrics.h"

namespace scone {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr std::size_t kLogLines = 6;
constexpr std::streamoff kMetricsTail = 8192;  // bytes; a line takes some 600

/// The last whole object of a metrics.jsonl, without reading a long one from its begin.
Json last_metrics(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary | std::ios::ate);
  if (!stream) return {};
  stream.seekg(std::max<std::streamoff>(0, stream.tellg() - kMetricsTail));
  Json last;
  for (std::string line; std::getline(stream, line);) {
    Json json = Json::parse(line, nullptr, false);
    if (json.is_object()) last = std::move(json);
  }
  return last;
}

std::vector<std::string> last_lines(const fs::path& file) {
  std::ifstream stream(file);
  std::deque<std::string> lines;
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(line.substr(0, 300));
    if (lines.size() > kLogLines) lines.pop_front();
  }
  return {lines.begin(), lines.end()};
}

std::optional<double> number(const Json& json, const char* key) {
  if (!json.is_object() || !json.contains(key) || !json[key].is_number()) return std::nullopt;
  return json[key].get<double>();
}

/// What one point's run folder says, without asking who runs it.
PointStatus read_folder(const fs::path& run, const RecordedPoint& point) {
  PointStatus status;
  status.name = point.name;
  status.state = "waiting";
  status.steps = point.figures.steps;
  const Json metrics = last_metrics(run / point.metrics);
  if (metrics.is_object()) status.step = metrics.value("step", std::int64_t{0});
  status.loss = number(metrics, "loss");
  status.tokens_per_second = number(metrics, "tokens_per_second");
  if (const auto seconds = number(metrics, "step_seconds"))
    status.seconds_left = *seconds * static_cast<double>(status.steps - status.step);
  for (std::size_t i = 0; i < point.stages.size(); ++i) {
    const Stage stage = i == 0 ? Stage::train : Stage::evaluate;  // all but training are alike here
    if (is_done(stage, run / point.results[i])) continue;
    status.stage = point.stages[i];
    return status;
  }
  status.state = "finished";
  status.loss = number(read_json_file(run / "evaluation.json"), "loss");
  status.seconds_left.reset();
  return status;
}

/// None, and a warning, where Slurm cannot be asked, as on another machine.
std::optional<std::map<std::string, QueuedPoint>> queue_if_reachable(const fs::path& folder) {
  try {
    return read_queue(folder);
  } catch (const InputError&) {
    throw;
  } catch (const std::exception& error) {
    spdlog::warn("what is in the queue is unknown: {}", error.what());
    return std::nullopt;
  }
}

std::string text(const std::optional<double>& value, const char* format) {
  return value ? fmt::format(fmt::runtime(format), *value) : "-";
}

}  // namespace

std::vector<PointStatus> read_status(const fs::path& folder, const SweepRecord& record) {
  const bool slurm = record.launcher == "slurm";
  const bool is_running = !slurm && is_locked(folder);
  std::vector<PointStatus> statuses;
  for (const RecordedPoint& point : record.points)
    statuses.push_back(read_folder(point_folder(folder, point.name), point));
  const bool all_finished =
      std::all_of(statuses.begin(), statuses.end(),
                  [](const PointStatus& status) { return status.state == "finished"; });
  std::optional<std::map<std::string, QueuedPoint>> queue;
  if (slurm && !all_finished) queue = queue_if_reachable(folder);
  for (PointStatus& status : statuses) {
    const fs::path run = point_folder(folder, status.name);
    fs::path log = run / "sweep.log";
    if (status.state != "finished" && slurm) {
      if (!queue) {
        status.state = "unknown";
      } else if (const auto at = queue->find(status.name); at != queue->end()) {
        status.state = at->second.state;
        log = at->second.log;
        if (status.state != "failed") status.stage = at->second.stage;
      }
    } else if (status.state != "finished") {
      if (const auto state = read_state(run)) {
        status.state = state->state == "running" && !is_running ? "interrupted" : state->state;
        status.stage = state->stage;
      }
    }
    if (status.state == "failed") status.log = last_lines(log);
  }
  return statuses;
}

std::string describe(const PointStatus& status) {
  std::string line =
      fmt::format("{}: {}", status.name, status.stage.empty() ? status.state : status.stage);
  line += fmt::format(", step {}/{}", status.step, status.steps);
  if (status.loss) line += fmt::format(", loss {:.4f}", *status.loss);
  if (status.stage == "train" && status.tokens_per_second)
    line += fmt::format(", {:.0f} tokens/s", *status.tokens_per_second);
  if (status.stage == "train" && status.seconds_left)
    line += fmt::format(", {} left", format_duration(*status.seconds_left));
  return line;
}

std::string format_table(const std::vector<PointStatus>& statuses) {
  std::size_t width = 5;
  for (const PointStatus& status : statuses) width = std::max(width, status.name.size());
  std::string table = fmt::format("{:<{}}  {:<11} {:<10} {:>15} {:>8} {:>9} {:>8}\n", "point",
                                  width, "state", "stage", "step", "loss", "tokens/s", "left");
  std::map<std::string, int> counts;
  for (const PointStatus& status : statuses) {
    ++counts[status.state];
    const bool trains = status.state == "running" && status.stage == "train";
    table += fmt::format(
        "{:<{}}  {:<11} {:<10} {:>15} {:>8} {:>9} {:>8}\n", status.name, width, status.state,
        status.stage.empty() ? "-" : status.stage, fmt::format("{}/{}", status.step, status.steps),
        text(status.loss, "{:.4f}"), text(status.tokens_per_second, "{:.0f}"),
        trains && status.seconds_left ? format_duration(*status.seconds_left) : "-");
    for (const std::string& line : status.log) table += "    | " + line + "\n";
  }
  table += fmt::format("{} points:", statuses.size());
  const char* separator = " ";
  for (const auto& [state, count] : counts) {
    table += fmt::format("{}{} {}", separator, count, state);
    separator = ", ";
  }
  return table + "\n";
}

Json to_json(const std::vector<PointStatus>& statuses) {
  Json list = Json::array();
  const auto or_null = [](const std::optional<double>& value) {
    return value ? Json(*value) : Json();
  };
  for (const PointStatus& status : statuses)
    list.push_back({{"name", status.name},
                    {"state", status.state},
                    {"stage", status.stage},
                    {"step", status.step},
                    {"steps", status.steps},
                    {"loss", or_null(status.loss)},
                    {"tokens_per_second", or_null(status.tokens_per_second)},
                    {"seconds_left", or_null(status.seconds_left)},
                    {"log", status.log}});
  return list;
}

std::vector<Json> read_metrics(const fs::path& file) {
  std::vector<Json> steps;
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    Json json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("step")) steps.push_back(std::move(json));
  }
  return steps;
}

}  // namespace scone
