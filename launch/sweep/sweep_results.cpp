#include "launch/sweep/sweep_results.h"

#include <algorithm>
#include <cmath>

#include "checkpoint/durable_file.h"

namespace scone {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr std::size_t kMostCurvePoints = 200;

std::optional<double> number(const Json& json, const char* key) {
  if (!json.is_object() || !json.contains(key) || !json[key].is_number()) return std::nullopt;
  return json[key].get<double>();
}

/// The mean of neighbours, so that at most kMostCurvePoints stay.
std::vector<std::pair<double, double>> thin(const std::vector<std::pair<double, double>>& curve) {
  const std::size_t group = (curve.size() + kMostCurvePoints - 1) / kMostCurvePoints;
  std::vector<std::pair<double, double>> thinned;
  for (std::size_t i = 0; i < curve.size(); i += group) {
    const std::size_t end = std::min(curve.size(), i + group);
    double x = 0, y = 0;
    for (std::size_t j = i; j < end; ++j) x += curve[j].first, y += curve[j].second;
    const auto count = static_cast<double>(end - i);
    thinned.emplace_back(x / count, y / count);
  }
  return thinned;
}

void read_training(const fs::path& run, PointResult& result) {
  const auto steps = read_metrics(run / result.point.metrics);
  std::vector<std::pair<double, double>> curve;
  double nodes = 0, tokens = 0, all_seconds = 0;
  std::vector<double> seconds;
  for (const Json& step : steps) {
    tokens = number(step, "tokens").value_or(0);
    if (const auto loss = number(step, "loss")) curve.emplace_back(tokens, *loss);
    if (const auto loss = number(step, "validation_loss"))
      result.validation_curve.emplace_back(tokens, *loss);
    nodes += number(step, "fgram_nodes_computed_per_token").value_or(0);
    seconds.push_back(number(step, "step_seconds").value_or(0));
    all_seconds += seconds.back();
  }
  if (steps.empty()) return;
  result.training_curve = thin(curve);
  // Lines may have been left out of metrics that are kept: means over those that are there.
  const auto lines = static_cast<double>(steps.size());
  const double last_step = number(steps.back(), "step").value_or(lines);
  result.nodes_per_token = nodes / lines;
  result.training_seconds = all_seconds / lines * last_step;
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  if (*middle > 0) result.tokens_per_second = tokens / last_step / *middle;
  // A backward pass costs twice the forward pass.
  result.training_flops =
      3 * tokens * result.point.figures.main_flops * result.training_flops_ratio();
}

void read_evaluations(const fs::path& run, PointResult& result) {
  if (result.status.state != "finished") return;
  const Json live = read_json_file(run / "evaluation.json");
  result.loss = number(live, "loss");
  result.perplexity = number(live, "perplexity");
  result.bits_per_byte = number(live, "bits_per_byte");
  if (!fs::exists(run / "baked-evaluation.json")) return;
  const Json bake = read_json_file(run / "bake.json");
  const auto rows = number(bake, "table_bytes"), index = number(bake, "index_bytes");
  if (rows && index) result.table_bytes = *rows + *index;
  const Json baked = read_json_file(run / "baked-evaluation.json");
  result.baked_loss = number(baked, "loss");
  result.baked_perplexity = number(baked, "perplexity");
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

/// The values of a point's row, by the name of their column, in order.
std::vector<std::pair<std::string, Json>> row_of(const PointResult& result,
                                                 const std::vector<std::string>& axes) {
  const PointFigures& figures = result.point.figures;
  const auto or_null = [](const std::optional<double>& value) {
    return value ? Json(*value) : Json();
  };
  std::vector<std::pair<std::string, Json>> row = {
      {"name", result.point.name}, {"state", result.status.state}, {"group", result.point.group}};
  for (const std::string& axis : axes) {
    const std::string* label = result.label(axis);
    row.emplace_back(axis, label != nullptr ? Json(*label) : Json());
  }
  const std::vector<std::pair<std::string, Json>> values = {
      {"seed", result.point.seed},
      {"loss", or_null(result.loss)},
      {"perplexity", or_null(result.perplexity)},
      {"bits_per_byte", or_null(result.bits_per_byte)},
      {"baked_loss", or_null(result.baked_loss)},
      {"baked_perplexity", or_null(result.baked_perplexity)},
      {"fgrams", figures.fgrams},
      {"longest_fgram", figures.longest_fgram},
      {"main_parameters", figures.main_parameters},
      {"non_embedding_parameters", figures.main_parameters - figures.embedding_parameters},
      {"fgram_parameters", figures.fgram_parameters},
      {"steps", result.status.step},
      {"training_tokens", figures.tokens},
      {"training_flops", result.training_flops},
      {"training_flops_ratio", result.training_flops_ratio()},
      {"inference_flops_per_token", figures.main_flops},
      {"table_bytes", or_null(result.table_bytes)},
      {"fgram_nodes_per_token", result.nodes_per_token},
      {"training_seconds", result.training_seconds},
      {"tokens_per_second", result.tokens_per_second}};
  row.insert(row.end(), values.begin(), values.end());
  return row;
}

}  // namespace

double PointResult::training_flops_ratio() const {
  return 1 + nodes_per_token * point.figures.fgram_node_flops / point.figures.main_flops;
}

const std::string* PointResult::label(const std::string& axis) const {
  for (const PointLabel& own : point.labels)
    if (own.axis == axis) return &own.value;
  return nullptr;
}

std::optional<SettingResult::Spread> SettingResult::spread(
    std::optional<double> PointResult::*value) const {
  Spread spread;
  double low = INFINITY, high = -INFINITY, sum = 0;
  for (const PointResult* run : runs) {
    const std::optional<double>& own = run->*value;
    if (!own) continue;
    ++spread.count;
    sum += *own;
    low = std::min(low, *own);
    high = std::max(high, *own);
  }
  if (spread.count == 0) return std::nullopt;
  spread.mean = sum / spread.count;
  spread.half_range = (high - low) / 2;
  return spread;
}

std::vector<SettingResult> SweepResults::settings() const {
  std::vector<SettingResult> settings;
  for (const PointResult& point : points) {
    const auto same = std::find_if(settings.begin(), settings.end(), [&](const auto& setting) {
      const RecordedPoint& other = setting.runs.front()->point;
      return other.group == point.point.group && other.labels == point.point.labels;
    });
    if (same != settings.end())
      same->runs.push_back(&point);
    else
      settings.push_back({{&point}});
  }
  for (SettingResult& setting : settings)
    std::stable_partition(setting.runs.begin(), setting.runs.end(),
                          [](const PointResult* run) { return run->finished(); });
  return settings;
}

SweepResults read_results(const fs::path& folder, SweepRecord record) {
  SweepResults results;
  results.record = std::move(record);
  const auto statuses = read_status(folder, results.record);
  for (std::size_t i = 0; i < results.record.points.size(); ++i) {
    PointResult result;
    result.point = results.record.points[i];
    result.status = statuses[i];
    const fs::path run = point_folder(folder, result.point.name);
    read_training(run, result);
    read_evaluations(run, result);
    for (const PointLabel& label : result.point.labels)
      if (std::find(results.axes.begin(), results.axes.end(), label.axis) == results.axes.end())
        results.axes.push_back(label.axis);
    results.points.push_back(std::move(result));
  }
  return results;
}

std::string to_csv(const SweepResults& results) {
  std::string csv;
  for (const PointResult& point : results.points) {
    std::string header, line;
    for (const auto& [name, value] : row_of(point, results.axes)) {
      const std::string separator = line.empty() ? "" : ",";
      header += separator + csv_field(name);
      line += separator + csv_field(value.is_null()     ? ""
                                    : value.is_string() ? value.get<std::string>()
                                                        : value.dump());
    }
    if (csv.empty()) csv = header + "\n";
    csv += line + "\n";
  }
  return csv;
}

Json to_json(const SweepResults& results) {
  Json points = Json::array();
  for (const PointResult& point : results.points) {
    Json json = Json::object();
    for (auto& [name, value] : row_of(point, results.axes)) json[name] = value;
    points.push_back(std::move(json));
  }
  Json settings = Json::array();
  for (const SettingResult& setting : results.settings()) {
    const RecordedPoint& point = setting.runs.front()->point;
    Json json = {{"group", point.group}, {"labels", Json::object()}, {"runs", Json::array()}};
    for (const PointLabel& label : point.labels) json["labels"][label.axis] = label.value;
    for (const PointResult* run : setting.runs) json["runs"].push_back(run->point.name);
    const auto add = [&](const char* name, std::optional<double> PointResult::*value) {
      if (const auto spread = setting.spread(value))
        json[name] = {
            {"mean", spread->mean}, {"half_range", spread->half_range}, {"runs", spread->count}};
    };
    add("loss", &PointResult::loss);
    add("perplexity", &PointResult::perplexity);
    add("baked_perplexity", &PointResult::baked_perplexity);
    settings.push_back(std::move(json));
  }
  return {{"name", results.record.name}, {"points", points}, {"settings", settings}};
}

}  // namespace scone
