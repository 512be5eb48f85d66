#include "launch/progress_line.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace scone {

ProgressLine::ProgressLine(std::string what, int ranks)
    : what_(std::move(what)), ranks_(ranks), terminal_(::isatty(STDERR_FILENO) != 0) {}

void ProgressLine::operator()(const BakeProgress& progress) {
  const bool last = progress.rows_done == progress.rows_total;
  if (!last && progress.seconds - printed_ < (terminal_ ? 0.2 : 10.0)) return;
  printed_ = progress.seconds;
  const double rate = static_cast<double>(progress.rows_done) / progress.seconds;
  const double left = static_cast<double>(progress.rows_total - progress.rows_done) / rate;
  fmt::print(
      stderr, "{}{}: {:5.1f} %  {:.0f} rows/s  {:.0f} s left{}", terminal_ ? "\r" : "", what_,
      100.0 * static_cast<double>(progress.rows_done) / static_cast<double>(progress.rows_total),
      rate * ranks_, left, terminal_ && !last ? "   " : "   \n");
  std::fflush(stderr);
}

}  // namespace scone
