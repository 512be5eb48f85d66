#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/plan/fgram_load.h"
#include "launch/plan/planned_collective.h"
#include "trainer/run_config.h"

namespace scone {

/// Bytes of one rank by purpose. `main` and `fgram` lie where the models compute (on the device);
/// `host` always in the host's memory.
struct MemoryItem {
  std::string name;
  std::int64_t main = 0, fgram = 0, host = 0;
};

struct RankMemory {
  std::vector<MemoryItem> items;
  std::int64_t device_bytes() const;  // main and fgram
  std::int64_t host_bytes() const;
  const MemoryItem& item(const std::string& name) const;
};

/// What is known of the f-gram vocabulary: of a file, or from its size alone.
struct VocabularyBytes {
  std::int64_t fgrams = 0;
  std::int64_t index_bytes = 0;   // of each rank
  std::int64_t mapped_bytes = 0;  // of the file, which the ranks of a node share
};
VocabularyBytes vocabulary_bytes(const FgramVocabulary& vocabulary);
VocabularyBytes vocabulary_bytes(std::int64_t fgrams, std::int64_t token_vocabulary);

/// The program and its libraries, as this process found them when it started (17 MiB; 166 with
/// CUDA's), with the 38 MiB that MPI, threads and kernels take later, 4 more or less in the runs of
/// tests/launch/plan_test.sh.
std::int64_t program_bytes();

/// load: the most of any batch. config: with what the data fill in.
RankMemory plan_memory(const RunConfig& config, const PlanGrids& grids, int rank,
                       const RankLoad& load, const VocabularyBytes& vocabulary);

}  // namespace scone
