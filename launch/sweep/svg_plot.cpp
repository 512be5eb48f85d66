#include "launch/sweep/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

namespace scone {
namespace {

constexpr int kColours = 8, kShapes = 4;
constexpr double kWidth = 420, kHeight = 300;
constexpr double kLeft = 50, kRight = 14, kTop = 12, kBottom = 44;
constexpr double kLabelWidth = 40;  // of a tick of the x axis, at the least
constexpr double kZeroWidth = 34;   // of the place for x = 0 beside a logarithmic axis

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return !(low <= high); }
};

/// From data to the drawing.
class Scale {
 public:
  Scale(const Plot& plot);
  double x(double value) const {
    if (!log_x_) return along(value, x_.low, x_.high, kLeft, kWidth - kRight);
    if (value <= 0) return kLeft + kZeroWidth / 2;
    return along(std::log10(value), x_.low, x_.high, kLeft + (zero_ ? kZeroWidth : 0),
                 kWidth - kRight);
  }
  double y(double value) const { return along(value, y_.low, y_.high, kHeight - kBottom, kTop); }
  bool has_zero() const { return zero_; }
  std::vector<double> x_ticks() const;
  std::vector<double> y_ticks() const { return linear_ticks(y_, 5); }

 private:
  static double along(double value, double low, double high, double from, double to) {
    return from + (value - low) / (high - low) * (to - from);
  }
  static std::vector<double> linear_ticks(const Range& range, int most);

  bool log_x_, zero_ = false;
  Range x_, y_;  // x_: of the logarithm where log_x_
};

bool is_drawn(const PlotPoint& point, bool log_x) {
  return std::isfinite(point.x) && std::isfinite(point.y) && (!log_x || point.x >= 0);
}

Scale::Scale(const Plot& plot) : log_x_(plot.log_x) {
  for (const PlotSeries& series : plot.series) {
    for (const auto* points : {&series.marks, &series.line}) {
      for (const PlotPoint& point : *points) {
        if (!is_drawn(point, log_x_)) continue;
        y_.add(point.y);
        if (log_x_ && point.x == 0)
          zero_ = true;
        else
          x_.add(log_x_ ? std::log10(point.x) : point.x);
      }
    }
  }
  if (plot.y_range) y_ = {plot.y_range->first, plot.y_range->second};
  if (x_.empty()) x_ = {0, 1};
  if (y_.empty()) y_ = {0, 1};
  const auto widen = [](Range& range, double share, double least) {
    const double by = std::max((range.high - range.low) * share, least);
    range.low -= by;
    range.high += by;
  };
  widen(x_, 0.04, x_.low == x_.high ? std::max(0.2, 0.2 * std::abs(x_.low)) : 0.0);
  widen(y_, 0.06, y_.low == y_.high ? std::max(0.5, 0.05 * std::abs(y_.low)) : 0.0);
}

std::vector<double> Scale::linear_ticks(const Range& range, int most) {
  const double rough = (range.high - range.low) / most;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0})
    if (factor * power >= rough) step = factor * power;
  std::vector<double> ticks;
  for (double tick = std::ceil(range.low / step); tick * step <= range.high; ++tick)
    ticks.push_back(tick * step);
  return ticks;
}

std::vector<double> Scale::x_ticks() const {
  if (!log_x_) return linear_ticks(x_, 5);
  const auto ticks_of = [&](std::initializer_list<double> factors) {
    std::vector<double> ticks;
    for (double power = std::floor(x_.low); power <= x_.high; ++power)
      for (const double factor : factors) {
        const double tick = power + std::log10(factor);
        if (tick >= x_.low && tick <= x_.high) ticks.push_back(std::pow(10, tick));
      }
    return ticks;
  };
  auto ticks = ticks_of({1});
  if (ticks.size() < 3) ticks = ticks_of({1, 2, 5});
  if (ticks.size() < 3) ticks = ticks_of({1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9});
  while (ticks.size() > 7) {  // of many decades every second
    for (std::size_t i = 1; i < ticks.size(); ++i)
      ticks.erase(ticks.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return ticks;
}

/// A mark of `style` around (x, y), its title inside.
std::string mark(int style, double x, double y, const std::string& title) {
  const int shape = style / kColours % kShapes;
  const std::string inside =
      title.empty() ? "" : fmt::format("<title>{}</title>", escape_html(title));
  const std::string attributes =
      fmt::format("class=\"mark c{}\" data-title=\"{}\"", style % kColours, escape_html(title));
  if (shape == 0)
    return fmt::format("<circle {} cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\">{}</circle>", attributes, x,
                       y, inside);
  const char* path = shape == 1   ? "m-4-4h8v8h-8z"
                     : shape == 2 ? "m0-5l5 9h-10z"
                                  : "m0-5.5l5 5.5l-5 5.5l-5-5.5z";
  return fmt::format("<path {} d=\"M{:.1f} {:.1f}{}\">{}</path>", attributes, x, y, path, inside);
}

std::string text(double x, double y, const char* anchor, const std::string& content) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>", x, y, anchor,
                     escape_html(content));
}

std::string axes(const Plot& plot, const Scale& scale) {
  const double bottom = kHeight - kBottom, right = kWidth - kRight;
  std::string svg;
  const auto line = [&](const char* kind, double x1, double y1, double x2, double y2) {
    svg +=
        fmt::format("<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>",
                    kind, x1, y1, x2, y2);
  };
  for (const double tick : scale.y_ticks()) {
    line("grid", kLeft, scale.y(tick), right, scale.y(tick));
    svg += text(kLeft - 6, scale.y(tick) + 4, "end", fmt::format("{:.6g}", tick));
  }
  double labelled = -kWidth;  // where the last label is
  for (const double tick : scale.x_ticks()) {
    line("grid", scale.x(tick), kTop, scale.x(tick), bottom);
    if (scale.x(tick) - labelled < kLabelWidth) continue;
    labelled = scale.x(tick);
    svg += text(scale.x(tick), bottom + 16, "middle", short_count(tick));
  }
  if (scale.has_zero()) {
    line("grid", scale.x(0), kTop, scale.x(0), bottom);
    svg += text(scale.x(0), bottom + 16, "middle", "0");
    line("break", kLeft + kZeroWidth, kTop, kLeft + kZeroWidth, bottom);
  }
  line("axis", kLeft, bottom, right, bottom);
  line("axis", kLeft, kTop, kLeft, bottom);
  svg += text((kLeft + right) / 2, kHeight - 8, "middle", plot.x_label);
  svg += fmt::format(
      "<text transform=\"translate(12 {:.1f}) rotate(-90)\" text-anchor=\"middle\">"
      "{}</text>",
      (kTop + bottom) / 2, escape_html(plot.y_label));
  return svg;
}

}  // namespace

std::string draw(const Plot& plot) {
  const Scale scale(plot);
  std::string lines, marks;
  for (const PlotSeries& series : plot.series) {
    std::string corners;
    for (const PlotPoint& point : series.line)
      if (is_drawn(point, plot.log_x))
        corners += fmt::format("{}{:.1f},{:.1f}", corners.empty() ? "" : " ", scale.x(point.x),
                               scale.y(point.y));
    if (!corners.empty())
      lines +=
          fmt::format("<polyline class=\"line{} c{}\" points=\"{}\"><title>{}</title></polyline>\n",
                      series.dashed ? " dashed" : "", series.style % kColours, corners,
                      escape_html(series.name));
    for (const PlotPoint& point : series.marks)
      if (is_drawn(point, plot.log_x))
        marks += mark(series.style, scale.x(point.x), scale.y(point.y), point.title) + "\n";
  }
  return fmt::format(
      "<svg id=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{} against {}\">\n{}\n"
      "<svg x=\"{}\" y=\"0\" width=\"{}\" height=\"{}\" viewBox=\"{} 0 {} "
      "{}\">\n{}</svg>\n{}</svg>",
      plot.id, kWidth, kHeight, escape_html(plot.y_label), escape_html(plot.x_label),
      axes(plot, scale), kLeft, kWidth - kLeft, kHeight - kBottom, kLeft, kWidth - kLeft,
      kHeight - kBottom, lines, marks);
}

std::string draw_legend(const Plot& plot) {
  std::string entries;
  int count = 0;
  for (const PlotSeries& series : plot.series) {
    if (series.name.empty()) continue;
    ++count;
    entries += fmt::format(
        "<li><svg class=\"sample\" viewBox=\"0 0 22 12\"><polyline class=\"line c{}\" points=\"0,6 "
        "22,6\"/>{}</svg>{}</li>\n",
        series.style % kColours, series.marks.empty() ? "" : mark(series.style, 11, 6, ""),
        escape_html(series.name));
  }
  if (count == 0) return "";
  const std::string list = "<ul class=\"legend\">\n" + entries + "</ul>";
  constexpr int most_shown = 8;
  return count <= most_shown
             ? list
             : fmt::format("<details><summary>{} series</summary>\n{}</details>", count, list);
}

const char* plot_style() {
  return R"css(:root { --c0: #2f6fe4; --c1: #c2640c; --c2: #0f8f73; --c3: #a83c93; --c4: #8a7400; --c5: #cf3a40;
  --c6: #5a51c8; --c7: #5f6b78; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #6ea0ff; --c1: #e8923f; --c2: #3ec2a2; --c3: #dd7cc9; --c4: #c9b037; --c5: #f07378;
    --c6: #9d97ff; --c7: #a3afbb; }
}
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
@media (max-width: 36rem) { svg text { font-size: 14.5px; } }
svg .grid { stroke: var(--grid); stroke-width: .7; }
svg .break { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .line { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 5 4; stroke-width: 1.2; }
svg .mark { fill: currentColor; stroke: var(--card); stroke-width: .8; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem .9rem; margin: .4rem 0 0; padding: 0;
  font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .35rem; overflow-wrap: anywhere; }
.legend .sample { width: 22px; height: 12px; flex: none; }
)css";
}

std::string short_count(double value) {
  if (value == 0) return "0";  // not -0, which a tick may be
  constexpr std::array<std::pair<double, const char*>, 6> units = {
      {{1e18, "E"}, {1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "K"}}};
  for (const auto& [size, unit] : units)
    if (std::abs(value) >= 0.9995 * size) return fmt::format("{:.3g}{}", value / size, unit);
  return fmt::format("{:.3g}", value);
}

std::string escape_html(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

}  // namespace scone
