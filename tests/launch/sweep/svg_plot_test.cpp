// Plots of a sweep's report: what is drawn, and where.
#include "launch/sweep/svg_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>

namespace scone {
namespace {

using testing::HasSubstr;
using testing::Not;

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

Plot two_series() {
  return {"test",
          "f-grams",
          "perplexity",
          true,
          {},
          {{"first",
            0,
            {{0, 50, "zero"}, {1e4, 45, "a"}, {1e6, 40, "b"}},
            {{1e4, 45, ""}, {1e6, 40, ""}}},
           {"second", 9, {{1e4, 60, "c"}}, {}}}};
}

TEST(SvgPlot, DrawsEachMarkAndLine) {
  const std::string svg = draw(two_series());
  EXPECT_EQ(count(svg, "class=\"mark c0\""), 3);
  EXPECT_EQ(count(svg, "class=\"mark c1\""), 1);  // the ninth style has the first shape's neighbour
  EXPECT_EQ(count(svg, "<circle"), 3);
  EXPECT_EQ(count(svg, "<polyline"), 1);
  EXPECT_THAT(svg, HasSubstr(">f-grams</text>"));
  for (const char* tick : {">0<", ">10K<", ">100K<", ">1M<", ">40<", ">60<"})
    EXPECT_THAT(svg, HasSubstr(tick));
}

/// Where the circle with this title is drawn.
std::pair<double, double> centre(const std::string& svg, const std::string& title) {
  const auto begin = svg.find("data-title=\"" + title + "\"");
  const auto number = [&](const char* name) {
    return std::stod(svg.substr(svg.find(name, begin) + 4));
  };
  return {number("cx=\""), number("cy=\"")};
}

TEST(SvgPlot, MarksAreWhereTheirValuesSay) {
  Plot plot = two_series();
  plot.series[0].marks.push_back({1e5, 45, "between"});
  const std::string svg = draw(plot);
  const auto zero = centre(svg, "zero"), a = centre(svg, "a"), b = centre(svg, "b"),
             between = centre(svg, "between");
  EXPECT_LT(zero.first, a.first);
  EXPECT_NEAR(between.first, (a.first + b.first) / 2, 0.11);  // logarithmic; 0.1 is drawn
  EXPECT_NEAR(a.second, (zero.second + b.second) / 2, 0.11);
  EXPECT_LT(zero.second, b.second);  // 50 above 40
  plot.log_x = false;
  const std::string linear = draw(plot);
  const double x0 = centre(linear, "zero").first, x1 = centre(linear, "b").first;
  EXPECT_NEAR(centre(linear, "between").first, x0 + 0.1 * (x1 - x0), 0.11);
}

TEST(SvgPlot, ZeroHasAPlaceOnALogarithmicAxis) {
  Plot plot = two_series();
  EXPECT_THAT(draw(plot), HasSubstr("class=\"break\""));
  plot.series[0].marks.erase(plot.series[0].marks.begin());
  EXPECT_THAT(draw(plot), Not(HasSubstr("class=\"break\"")));
}

TEST(SvgPlot, LeavesOutWhatIsNotFinite) {
  Plot plot = two_series();
  plot.series[1].marks[0].y = NAN;
  plot.series[0].marks[1].x = INFINITY;
  const std::string svg = draw(plot);
  EXPECT_EQ(count(svg, "class=\"mark"), 2);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(SvgPlot, OnePointAndNone) {
  Plot plot{"one", "x", "y", false, {}, {{"s", 0, {{5, 7, ""}}, {}}}};
  EXPECT_EQ(count(draw(plot), "class=\"mark"), 1);
  EXPECT_THAT(draw(plot), Not(HasSubstr("nan")));
  plot.series.clear();
  EXPECT_EQ(count(draw(plot), "class=\"mark"), 0);
  EXPECT_EQ(draw_legend(plot), "");
}

TEST(SvgPlot, TextIsEscaped) {
  Plot plot = two_series();
  plot.series[0].name = "<b> & \"c\"";
  plot.series[0].marks[0].title = "<b> & \"c\"";
  for (const std::string& html : {draw(plot), draw_legend(plot)}) {
    EXPECT_THAT(html, HasSubstr("&lt;b&gt; &amp; &quot;c&quot;"));
    EXPECT_THAT(html, Not(HasSubstr("<b>")));
  }
}

TEST(SvgPlot, ManySeriesFoldTheLegend) {
  Plot plot = two_series();
  EXPECT_THAT(draw_legend(plot), Not(HasSubstr("<details>")));
  for (int i = 0; i < 10; ++i) plot.series.push_back({"more", i, {}, {}});
  EXPECT_THAT(draw_legend(plot), HasSubstr("<summary>12 series</summary>"));
}

TEST(SvgPlot, DashedLine) {
  Plot plot = two_series();
  EXPECT_THAT(draw(plot), HasSubstr("class=\"line c0\""));
  plot.series[0].dashed = true;
  EXPECT_THAT(draw(plot), HasSubstr("class=\"line dashed c0\""));
}

TEST(SvgPlot, Counts) {
  EXPECT_EQ(short_count(0), "0");
  EXPECT_EQ(short_count(-0.0), "0");
  EXPECT_EQ(short_count(999), "999");
  EXPECT_EQ(short_count(999.9), "1K");
  EXPECT_EQ(short_count(1250000), "1.25M");
  EXPECT_EQ(short_count(3.1e16), "31P");
}

}  // namespace
}  // namespace scone
