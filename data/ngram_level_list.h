#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/ngram_counter.h"

namespace scone {

/// finished.json of a rank's spill folder: which scans are done, so that a run that was killed goes
/// on from there.
class NgramLevelList {
 public:
  static constexpr const char* file_name = "finished.json";

  NgramLevelList(std::filesystem::path folder, const TokenCorpus& corpus,
                 const NgramCounterOptions& options, int ranks, int bits);

  /// The levels that an earlier run with the same corpus, min_count and ranks finished, at most
  /// those of max_length; none where it was another or their files are not whole.
  std::vector<NgramLevelFile> read() const;
  /// Records the levels, on the disk when this returns.
  void write(const std::vector<NgramLevelFile>& levels) const;

 private:
  std::filesystem::path folder_;
  std::string run_;  // tells runs apart whose levels differ
  int max_length_, bits_;
};

}  // namespace scone
