#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace scone {

/// A mark, or a corner of a line.
struct PlotPoint {
  double x = 0, y = 0;
  std::string title;  // shown on hovering
};

struct PlotSeries {
  std::string name;  // in the legend; empty: none
  int style = 0;     // colour and shape of the marks
  std::vector<PlotPoint> marks;
  std::vector<PlotPoint> line;  // in the order of drawing; empty: none
  bool dashed = false;          // of the line
};

struct Plot {
  std::string id;  // of the <svg>
  std::string x_label, y_label;
  bool log_x = false;  // x = 0 then has a place of its own at the left
  std::optional<std::pair<double, double>> y_range;  // none: all that is drawn
  std::vector<PlotSeries> series;
};

/// The plot as an SVG without a size of its own, that takes its colours from the page's style (see
/// plot_style). Each mark has class "mark", each line class "line". What is not finite is left out.
std::string draw(const Plot& plot);

/// The legend as HTML: a sample of each named series' mark, and its name.
std::string draw_legend(const Plot& plot);

/// CSS that plots and legends need, for light and dark.
const char* plot_style();

/// With three digits and K, M, G, T, P, E: "1.25M".
std::string short_count(double value);

/// Text in HTML, and in its attributes.
std::string escape_html(const std::string& text);

}  // namespace scone
