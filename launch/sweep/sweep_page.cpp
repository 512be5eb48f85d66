#include "launch/sweep/sweep_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "launch/sweep/svg_plot.h"
#include "trainer/metrics.h"

namespace scone {
namespace {

const char* const kStyle = R"css(
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --grid: #d8dde3; --page: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --soft: #9aa4af; --grid: #3a424b; --page: #14171b; --card: #1d2126; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.2rem 1rem 3rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; padding: .8rem; background: var(--card); border-radius: .5rem; min-width: 0; }
figcaption { font-size: .95rem; margin-bottom: .5rem; }
figure > svg { display: block; width: 100%; height: auto; }
figure details { font-size: .85rem; margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; line-height: 1.25; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem; margin: .5rem 0; overflow-x: auto;
  font-size: .85rem; line-height: 1.45; }
summary { cursor: pointer; }
)css";

/// Whether the axis of a label sets a key that begins with one of `prefixes`.
bool sets_any(const PointLabel& label, const std::vector<std::string>& prefixes) {
  return std::any_of(label.keys.begin(), label.keys.end(), [&](const std::string& key) {
    return std::any_of(prefixes.begin(), prefixes.end(),
                       [&](const std::string& prefix) { return key.starts_with(prefix); });
  });
}

/// What a point has apart from the axes that a plot's x stands for.
std::string series_name(const PointResult& result, const std::vector<std::string>& along_x) {
  std::string name = result.point.group;
  for (const PointLabel& label : result.point.labels) {
    if (sets_any(label, along_x)) continue;
    const std::string part =
        label.axis.find('.') == std::string::npos
            ? label.value
            : label.axis.substr(label.axis.rfind('.', label.axis.rfind('.') - 1) + 1) + " " +
                  label.value;
    name += (name.empty() ? "" : ", ") + part;
  }
  return name.empty() ? "all" : name;
}

/// A finished run's may be beyond any number.
bool has_perplexity(const PointResult* result) {
  return result->finished() && result->perplexity.has_value();
}

/// A plot of perplexity: a mark a finished point, a line through the means of each series.
/// along_x: prefixes of the keys that x stands for; the other axes make the series.
Plot scatter(const SweepResults& results, const std::string& id, const std::string& x_label,
             const std::vector<std::string>& along_x,
             const std::function<double(const PointResult&)>& x_of) {
  Plot plot;
  plot.id = id;
  plot.x_label = x_label;
  plot.y_label = "validation perplexity";
  plot.log_x = true;
  std::vector<std::pair<std::string, std::map<double, std::vector<double>>>> means;
  for (const SettingResult& setting : results.settings()) {
    if (std::none_of(setting.runs.begin(), setting.runs.end(), has_perplexity)) continue;
    const std::string name = series_name(*setting.runs.front(), along_x);
    auto at = std::find_if(plot.series.begin(), plot.series.end(),
                           [&](const PlotSeries& series) { return series.name == name; });
    if (at == plot.series.end()) {
      at = plot.series.insert(plot.series.end(),
                              {name, static_cast<int>(plot.series.size()), {}, {}});
      means.emplace_back();
    }
    double sum_x = 0, sum_y = 0, runs = 0;
    for (const PointResult* run : setting.runs) {
      if (!has_perplexity(run)) continue;
      const double x = x_of(*run), y = *run->perplexity;
      at->marks.push_back(
          {x, y, fmt::format("{}: perplexity {:.3f} at {}", run->point.name, y, short_count(x))});
      sum_x += x, sum_y += y, ++runs;
    }
    means[static_cast<std::size_t>(at - plot.series.begin())].second[sum_x / runs].push_back(sum_y /
                                                                                             runs);
  }
  double last_x = 0;
  for (const auto& [_, of_series] : means) last_x = std::max(last_x, of_series.rbegin()->first);
  for (std::size_t i = 0; i < plot.series.size(); ++i) {
    // A baseline, which the others are compared with, goes on as a level.
    plot.series[i].dashed = means[i].second.rbegin()->first == 0 && last_x > 0;
    if (means[i].second.size() < 2 && !plot.series[i].dashed) continue;
    for (const auto& [x, values] : means[i].second) {
      double sum = 0;
      for (const double value : values) sum += value;
      plot.series[i].line.push_back({x, sum / static_cast<double>(values.size()), ""});
    }
    if (plot.series[i].dashed)
      plot.series[i].line.push_back({last_x, plot.series[i].line.back().y, ""});
  }
  return plot;
}

Plot loss_curves(const SweepResults& results, bool of_validation) {
  Plot plot;
  plot.id = of_validation ? "validation-loss" : "training-loss";
  plot.x_label = "training tokens";
  plot.y_label = of_validation ? "validation loss" : "training loss";
  double low = INFINITY, high = -INFINITY;
  for (const PointResult& result : results.points) {
    const auto& curve = of_validation ? result.validation_curve : result.training_curve;
    if (curve.empty()) continue;
    PlotSeries series;
    series.name = result.point.name;
    series.style = static_cast<int>(plot.series.size());
    for (std::size_t i = 0; i < curve.size(); ++i) {
      series.line.push_back({curve[i].first, curve[i].second, ""});
      // The first steps' fall from ln(vocabulary) would squeeze what matters into the lowest part.
      if (!of_validation && 10 * i < curve.size() && curve.size() > 1) continue;
      if (!std::isfinite(curve[i].second)) continue;
      low = std::min(low, curve[i].second);
      high = std::max(high, curve[i].second);
    }
    plot.series.push_back(std::move(series));
  }
  if (low <= high) plot.y_range = {low, high};
  return plot;
}

std::string figure(const std::string& caption, const Plot& plot) {
  return fmt::format("<figure><figcaption>{}</figcaption>\n{}\n{}</figure>\n", escape_html(caption),
                     draw(plot), draw_legend(plot));
}

using Row = std::vector<std::string>;

std::string table(const char* id, const Row& header, const std::vector<Row>& rows) {
  const auto line = [](const char* tag, const Row& cells) {
    std::string text = "<tr>";
    for (const std::string& cell : cells)
      text += fmt::format("<{}>{}</{}>", tag, escape_html(cell), tag);
    return text + "</tr>\n";
  };
  std::string text = fmt::format("<div class=\"scroll\"><table id=\"{}\">\n", id);
  text += line("th", header);
  for (const Row& row : rows) text += line("td", row);
  return text + "</table></div>\n";
}

std::string spread_text(const std::optional<SettingResult::Spread>& spread) {
  if (!spread) return "-";
  return spread->count > 1 ? fmt::format("{:.3f} ± {:.3f}", spread->mean, spread->half_range)
                           : fmt::format("{:.3f}", spread->mean);
}

std::string settings_table(const SweepResults& results) {
  Row header = {"setting", "runs", "perplexity"};
  const bool baked = std::any_of(results.points.begin(), results.points.end(),
                                 [](const PointResult& point) { return point.baked_perplexity; });
  if (baked) header.emplace_back("baked");
  for (const char* name : {"bits a byte", "f-grams", "f-gram model", "main model",
                           "without embedding", "training FLOPs", "of main alone", "FLOPs a token"})
    header.emplace_back(name);
  if (baked) header.emplace_back("table");
  std::vector<Row> rows;
  for (const SettingResult& setting : results.settings()) {
    const PointResult& first = *setting.runs.front();
    const PointFigures& figures = first.point.figures;
    const auto finished = std::count_if(setting.runs.begin(), setting.runs.end(),
                                        [](const auto* run) { return run->finished(); });
    Row row = {series_name(first, {}), fmt::format("{}/{}", finished, setting.runs.size()),
               spread_text(setting.spread(&PointResult::perplexity))};
    if (baked) row.push_back(spread_text(setting.spread(&PointResult::baked_perplexity)));
    const auto bits = setting.spread(&PointResult::bits_per_byte);
    row.push_back(bits ? fmt::format("{:.4f}", bits->mean) : "-");
    for (const std::int64_t count :
         {figures.fgrams, figures.fgram_parameters, figures.main_parameters,
          figures.main_parameters - figures.embedding_parameters})
      row.push_back(short_count(static_cast<double>(count)));
    const bool trained = first.training_flops > 0;
    row.push_back(trained ? short_count(first.training_flops) : "-");
    row.push_back(trained ? fmt::format("{:.2f}x", first.training_flops_ratio()) : "-");
    row.push_back(short_count(figures.main_flops));
    if (baked) row.push_back(first.table_bytes ? short_count(*first.table_bytes) + "B" : "-");
    rows.push_back(std::move(row));
  }
  return table("settings", header, rows);
}

std::string points_table(const SweepResults& results) {
  std::vector<Row> rows;
  for (const PointResult& result : results.points)
    rows.push_back({result.point.name, result.status.state,
                    fmt::format("{}/{}", result.status.step, result.status.steps),
                    result.loss ? fmt::format("{:.4f}", *result.loss) : "-",
                    result.perplexity ? fmt::format("{:.3f}", *result.perplexity) : "-",
                    result.tokens_per_second > 0 ? short_count(result.tokens_per_second) : "-",
                    result.training_seconds > 0 ? format_duration(result.training_seconds) : "-"});
  return table("points",
               {"run", "state", "steps", "loss", "perplexity", "tokens/s", "training time"}, rows);
}

std::string failures(const SweepResults& results) {
  std::string text;
  for (const PointResult& result : results.points) {
    if (result.status.log.empty()) continue;
    std::string log;
    for (const std::string& line : result.status.log) log += line + "\n";
    text +=
        fmt::format("<p>{}</p><pre>{}</pre>\n", escape_html(result.point.name), escape_html(log));
  }
  return text.empty() ? "" : "<h2>Failed runs</h2>\n" + text;
}

}  // namespace

std::string make_page(const SweepResults& results, const std::string& sweep_file) {
  const PointResult* best = nullptr;
  std::size_t finished = 0;
  for (const PointResult& point : results.points) {
    if (!point.finished()) continue;
    ++finished;
    if (!has_perplexity(&point)) continue;
    if (best == nullptr || *point.loss < *best->loss) best = &point;
  }
  const auto count = [](std::int64_t value) { return static_cast<double>(value); };
  std::string plots;
  if (best != nullptr) {
    plots +=
        figure("Perplexity against the number of f-grams",
               scatter(results, "fgrams", "f-grams", {"fgrams.size", "fgrams.vocabulary"},
                       [&](const auto& result) { return count(result.point.figures.fgrams); }));
    plots += figure(
        "Perplexity against the f-gram model's parameters",
        scatter(results, "fgram-parameters", "parameters of the f-gram model", {"model.fgram."},
                [&](const auto& result) { return count(result.point.figures.fgram_parameters); }));
    plots += figure("Perplexity against training FLOPs, of both models",
                    scatter(results, "training-flops", "training FLOPs", {"model.main."},
                            [](const auto& result) { return result.training_flops; }));
    plots += figure("Perplexity against inference FLOPs a token (f-grams from a table)",
                    scatter(results, "inference-flops", "inference FLOPs a token", {"model.main."},
                            [](const auto& result) { return result.point.figures.main_flops; }));
  }
  for (const bool of_validation : {false, true}) {
    const Plot curves = loss_curves(results, of_validation);
    if (!curves.series.empty())
      plots += figure(of_validation ? "Validation loss during training" : "Training loss", curves);
  }
  const std::string title = best != nullptr ? fmt::format("{}: perplexity {:.2f} at best",
                                                          results.record.name, *best->perplexity)
                                            : results.record.name;
  return fmt::format(
      R"html(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}{plot_style}</style>
</head>
<body>
<h1>{title}</h1>
<p>{best}{finished} of {all} runs are finished.</p>
<div class="plots">
{plots}</div>
<h2>Settings</h2>
<p class="soft">Mean over the seeds ± half of their range. Parameters: f-gram model, main model, and the main model without
its token embedding. Training FLOPs: forward and backward of both models, and that by the main model's alone. FLOPs a token:
of inference, where f-grams come from a table, whose bytes are those of rows and index.</p>
{settings}<h2>Runs</h2>
{points}{failures}<h2>The sweep</h2>
<details><summary>sweep.yaml</summary><pre>{file}</pre></details>
</body>
</html>
)html",
      fmt::arg("title", escape_html(title)), fmt::arg("style", kStyle),
      fmt::arg("plot_style", plot_style()),
      fmt::arg("best", best != nullptr ? "Best run: " + escape_html(best->point.name) + ". " : ""),
      fmt::arg("finished", finished), fmt::arg("all", results.points.size()),
      fmt::arg("plots", plots), fmt::arg("settings", settings_table(results)),
      fmt::arg("points", points_table(results)), fmt::arg("failures", failures(results)),
      fmt::arg("file", escape_html(sweep_file)));
}

}  // namespace scone
