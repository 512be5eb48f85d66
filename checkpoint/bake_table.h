#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "checkpoint/table/table_layout.h"
#include "data/fgram_vocabulary.h"
#include "model/fgram_model.h"
#include "parallel/communicator.h"

namespace scone {

/// How far this rank is with its share of the table.
struct BakeProgress {
  std::int64_t rows_done = 0;
  std::int64_t rows_total = 0;  // of this rank
  std::int64_t rows_kept = 0;   // of all ranks: finished by an earlier bake, and verified
  double seconds = 0;           // since the first block began
};
using BakeProgressReport = std::function<void(const BakeProgress&)>;

/// Evaluates the f-gram model once for each f-gram of the vocabulary, as a trie (an f-gram costs
/// one node), and writes the rows into the table's files in `folder`, which exist. Blocks that the
/// folder's BakeJournal says are finished are read again and compared with their checksums; ranks
/// share the others out. They need the same file system. Rows of ids that the vocabulary leaves out
/// (longer than its max_length) stay zero. Bytes do not depend on the number of ranks. Collective:
/// returns the rows kept when every rank's rows are on disk. Throws InputError where a row is not
/// finite, std::runtime_error where the disk is full.
std::int64_t bake_table(const FgramVocabulary& vocabulary, FgramModel& model, Backend& backend,
                        const TableLayout& layout, const std::filesystem::path& folder,
                        std::int64_t block_nodes, Communicator& ranks,
                        const BakeProgressReport& report = {});

}  // namespace scone
