#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "trainer/appended_file.h"
#include "trainer/metrics.h"

namespace scone {

/// Files that TensorBoard shows: each number of metrics.jsonl as a scalar of the same name. Each
/// start of a run makes a file of its own.
class TensorboardLog {
 public:
  /// Makes the folder where there is none. Cuts from the files there what is of steps > last_step,
  /// which a resumed run repeats, and removes a file that is empty then. Throws InputError where
  /// the folder cannot be written.
  TensorboardLog(const std::filesystem::path& folder, std::int64_t last_step);
  /// On a full disk: see AppendedFile.
  void write(const StepMetrics& metrics);

 private:
  std::optional<AppendedFile> out_;
};

}  // namespace scone
