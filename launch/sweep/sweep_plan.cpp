#include "launch/sweep/sweep_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/plan/rank_memory.h"
#include "launch/sweep/svg_plot.h"
#include "trainer/metrics.h"

namespace scone {
namespace {

const PointResult& find(const SweepResults& earlier, const std::string& name) {
  return *std::find_if(earlier.points.begin(), earlier.points.end(),
                       [&](const PointResult& result) { return result.point.name == name; });
}

bool same_shape(const PointFigures& a, const PointFigures& b) {
  return a.main_parameters == b.main_parameters && a.fgram_parameters == b.fgram_parameters &&
         a.fgrams == b.fgrams && a.main_flops == b.main_flops;
}

/// Of a point's training steps, what a resumed training has before it.
double share_left(const PointStatus& status) {
  if (status.steps == 0) return 0;
  return 1 - static_cast<double>(status.step) / static_cast<double>(status.steps);
}

}  // namespace

Prediction predict(const SweepPoint& point, int ranks, const SweepResults& earlier) {
  Prediction prediction;
  RunConfig config = point.config;
  config.model.vocabulary_size = point.figures.embedding_parameters / config.model.main.width;
  config.model.fgram.context = point.figures.longest_fgram;
  const RankMemory memory = plan_memory(config, PlanGrids(config, ranks), 0, RankLoad{}, {});
  for (const char* name : {"parameters", "gradients", "AdamW moments", "activations"}) {
    const MemoryItem& item = memory.item(name);
    prediction.least_bytes += item.main + item.fgram;
  }
  std::int64_t most_steps = 0;  // few steps say little of the speed
  for (const PointResult& result : earlier.points) {
    if (result.tokens_per_second <= 0 || !same_shape(result.point.figures, point.figures)) continue;
    if (result.status.step <= most_steps) continue;
    most_steps = result.status.step;
    prediction.seconds = static_cast<double>(point.figures.tokens) / result.tokens_per_second;
  }
  return prediction;
}

std::string format_plan(const SweepConfig& sweep, const std::vector<SweepPoint>& points,
                        const SweepResults& earlier) {
  std::size_t width = 5;
  for (const SweepPoint& point : points) width = std::max(width, point.name.size());
  const auto row = [&](const auto&... cells) {
    return fmt::format("{:<{}} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:<11}\n", cells...);
  };
  std::string plan = row("point", width, "tokens", "main", "f-gram", "f-grams", "FLOPs", "time",
                         "memory", "state");
  const auto count = [](auto value) { return short_count(static_cast<double>(value)); };
  double tokens = 0, seconds = 0, flops = 0;
  bool all_known = true;
  std::size_t finished = 0;
  for (const SweepPoint& point : points) {
    const PointFigures& figures = point.figures;
    const PointResult& result = find(earlier, point.name);
    const Prediction prediction = predict(point, sweep.ranks(), earlier);
    const double main_flops = 3 * static_cast<double>(figures.tokens) * figures.main_flops;
    plan += row(point.name, width, count(figures.tokens), count(figures.main_parameters),
                count(figures.fgram_parameters), count(figures.fgrams), short_count(main_flops),
                prediction.seconds ? format_duration(*prediction.seconds) : "unknown",
                fmt::format(">{}B", count(prediction.least_bytes)), result.status.state);
    if (result.finished()) {
      ++finished;
      continue;
    }
    const double left = share_left(result.status);
    tokens += left * static_cast<double>(figures.tokens);
    flops += left * main_flops;
    if (prediction.seconds)
      seconds += left * *prediction.seconds;
    else
      all_known = false;
  }
  if (const auto* local = std::get_if<LocalLauncher>(&sweep.launcher))
    seconds /= std::min<double>(local->jobs, static_cast<double>(points.size()));
  plan += fmt::format(
      "{} points, {} finished; to train: {} tokens, {} FLOPs of main models, time {}\n"
      "main, f-gram: parameters. FLOPs: forward and backward of the main model. time: from a "
      "trained "
      "point of the same shape. memory: of each rank, more than that of parameters, gradients, "
      "moments and activations\n",
      points.size(), finished, short_count(tokens), short_count(flops),
      finished == points.size() ? "0"
      : all_known               ? format_duration(seconds)
      : seconds > 0             ? "more than " + format_duration(seconds)
                                : "unknown");
  return plan;
}

}  // namespace scone
