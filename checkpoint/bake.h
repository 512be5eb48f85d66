#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/fgram_table.h"
#include "data/fgram_vocabulary.h"
#include "model/fgram_model.h"
#include "parallel/communicator.h"

namespace scone {

class Backend;

/// How far this rank is with its share of the table.
struct BakeProgress {
  std::int64_t rows_done = 0;
  std::int64_t rows_total = 0;  // of this rank
  double seconds = 0;           // since the first block began
};
using BakeProgressReport = std::function<void(const BakeProgress&)>;

/// The f-grams of a vocabulary in blocks that are evaluated one at a time. A block holds whole
/// subtrees of leading bigrams (neighbours in order of first, then second token, so that roots are
/// shared) and about `block_nodes` f-grams; one larger subtree is a block of its own. Blocks do not
/// depend on the number of ranks. Costs 16 bytes of memory for each f-gram.
class BakeBlocks {
 public:
  BakeBlocks(const FgramVocabulary& vocabulary, std::int64_t block_nodes);
  std::int64_t blocks() const { return static_cast<std::int64_t>(begin_.size()) - 1; }
  /// Ids of the f-grams of a block, ascending.
  std::span<const std::int64_t> ids(std::int64_t block) const;

 private:
  std::vector<std::int64_t> ids_;    // grouped by block
  std::vector<std::int64_t> begin_;  // [blocks + 1]
};

/// Evaluates the f-gram model once for each f-gram of the vocabulary, as a trie (an f-gram costs
/// one node), and writes the rows into the table file `path`, which exists with `layout`. Rank r of
/// the communicator takes the blocks b with b % size == r and writes by pwrite, so all ranks need
/// the same file system. Rows of ids that the vocabulary leaves out (longer than its max_length)
/// stay zero. Bytes do not depend on the number of ranks. Collective: returns when every rank's
/// rows are on disk. Throws std::runtime_error where a row is not finite or the disk is full.
void bake_table(const FgramVocabulary& vocabulary, FgramModel& model, const TableLayout& layout,
                const std::filesystem::path& path, std::int64_t block_nodes, Communicator& ranks,
                const BakeProgressReport& report = {});

struct BakeOptions {
  std::filesystem::path source;      // run folder, its checkpoints folder, or one checkpoint
  std::filesystem::path bundle;      // made by the bake
  RowType type = RowType::fp32;      // of the table's rows
  std::filesystem::path vocabulary;  // f-gram vocabulary file; empty: the one trained with
  bool overwrite = false;            // replace an existing bundle
  std::int64_t block_nodes = 32768;
};

struct BakeResult {
  std::filesystem::path checkpoint;  // the one baked
  std::int64_t step = 0;
  std::int64_t rows = 0;  // 0: a baseline, no table
  std::int64_t width = 0;
  std::int64_t table_bytes = 0;      // size of the table file
  std::vector<std::string> skipped;  // newer checkpoints that were damaged (rank 0)
  double seconds = 0;
};

/// Makes a bundle of the newest valid checkpoint. Everything goes into the folder "<bundle>.tmp",
/// renamed when it is complete; one left by a bake that was killed is replaced. Collective over
/// `ranks`, which share the file system. Throws InputError: no valid checkpoint, the bundle exists,
/// tokenizer or f-gram vocabulary missing or of another run; std::runtime_error: disk full or
/// unwritable.
BakeResult bake_bundle(const BakeOptions& options, Backend& backend, Communicator& ranks,
                       const BakeProgressReport& report = {});

}  // namespace scone
