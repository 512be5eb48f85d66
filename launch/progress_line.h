#pragma once

#include <string>

#include "checkpoint/bake_table.h"

namespace scone {

/// Prints rows, rate and time left of rank 0's share to stderr: rewriting one line on a terminal,
/// else at most one line each ten seconds.
class ProgressLine {
 public:
  ProgressLine(std::string what, int ranks);
  void operator()(const BakeProgress& progress);

 private:
  std::string what_;
  int ranks_;
  bool terminal_;
  double printed_ = 0;
};

}  // namespace scone
