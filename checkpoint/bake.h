#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/bake_table.h"
#include "checkpoint/table/row_format.h"
#include "parallel/communicator.h"

namespace scone {

class Backend;

struct BakeOptions {
  std::filesystem::path source;      // run folder, its checkpoints folder, or one checkpoint
  std::filesystem::path bundle;      // made by the bake
  RowType type = RowType::fp32;      // of the table's rows
  std::filesystem::path vocabulary;  // f-gram vocabulary file; empty: the one trained with
  std::int64_t vocabulary_size = 0;  // of that file, use the first so many; 0: all
  bool overwrite = false;            // replace an existing bundle
  std::int64_t block_nodes = 32768;  // f-grams evaluated at a time on each rank
  std::int64_t file_bytes = std::int64_t{32} << 30;  // most of a file of rows
};

struct BakeResult {
  std::filesystem::path checkpoint;  // the one baked
  std::int64_t step = 0;
  std::int64_t rows = 0;  // 0: a baseline, no table
  std::int64_t width = 0;
  std::int64_t rows_kept = 0;        // of them, finished by an earlier bake that was ended
  std::int64_t table_bytes = 0;      // size of the files of rows
  std::int64_t index_bytes = 0;      // size of the index' file
  bool started_anew = false;         // an unfinished bake of something else was removed
  std::string warning;               // of a bundle that is not yet for sure on the disk (rank 0)
  std::vector<std::string> skipped;  // newer checkpoints that were damaged (rank 0)
  double seconds = 0;
};

/// Makes a bundle of the newest valid checkpoint. Everything goes into the folder "<bundle>.tmp",
/// renamed when it is complete; where a bake is ended, its folder stays, and the same bake, on any
/// number of ranks, goes on from there: finished blocks are verified, not computed again.
/// Collective over `ranks`, which share the file system. Throws InputError: no valid checkpoint,
/// the bundle exists, tokenizer or f-gram vocabulary missing or of another run, a row that is not
/// finite, a file that cannot be read; std::runtime_error: disk full or unwritable.
BakeResult bake_bundle(const BakeOptions& options, Backend& backend, Communicator& ranks,
                       const BakeProgressReport& report = {});

}  // namespace scone
