#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/fgram_plan.h"
#include "data/fgram_vocabulary.h"
#include "data/token_mixture.h"
#include "parallel/sharding.h"

namespace scone {

/// Sequences are samples of a mixture in its order (see SampleOrder), a pure function of (seed,
/// epoch, place); a corpus' last window may be short (padded: token 0, target -1, no match), and an
/// epoch's end may fall inside a batch. Documents are packed: a sequence holds pieces of several,
/// kept apart by attention_start.
struct BatchStreamOptions {
  std::int64_t sequence_length = 0;
  std::int64_t batch_sequences = 0;  // of the global batch
  Part data;   // data-parallel part: a contiguous slice of the sequences, sizes differ by at most 1
  Part share;  // tensor-parallel part: the ranks that read the same slice share its f-grams out
  std::int64_t microbatch_sequences = 0;  // of a step's microbatches; 0: one
  bool share_fgrams = true;               // false: a row for every match, computed by itself
  std::uint64_t seed = 0;
  bool shuffle = true;
  bool attention_across_documents = false;
  int prefetch = 2;    // batches prepared ahead, on a thread of its own
  int read_ahead = 4;  // batches, beyond those, whose tokens are asked of the disk in advance
};

/// Position in the data order: all that resuming needs beside the mixture's fingerprint.
struct DataState {
  std::int64_t epoch = 0;
  std::int64_t sample = 0;  // next sample within the epoch's order
};

/// One rank's slice of a global batch.
struct Batch {
  std::int64_t sequences = 0, length = 0;
  std::vector<std::int32_t> tokens;   // [sequences * length]
  std::vector<std::int32_t> targets;  // next token; -1 at padding, and, unless attention crosses
                                      // documents, where the next token begins another document
  std::vector<std::int32_t> attention_start;  // first position of the sequence in the same document
                                              // (0 if attention crosses)
  std::vector<std::int64_t>
      match;  // f-gram id of the longest match ending there; -1: none. A match
              // starts inside the sequence and the document. Empty: no vocabulary.
  std::vector<std::int64_t> fgrams;  // this rank's share of the distinct ids in match, ascending;
                                     // without sharing: of all of them, by position
  std::vector<std::int32_t> row_of_position;  // index into fgrams; -1: no match; -2: in the share
                                              // of another rank
  FgramPlan plan;  // where the stream was given a planner; its rows' cells: see below
  std::int64_t local_targets = 0;  // targets >= 0
  DataState state_after;           // where the next batch begins
};

/// Cells of a batch's FgramPlan: which rows the first microbatch needs not yet, and which the last
/// one needs no more, so that they can travel while it runs.
struct BatchCells {
  static constexpr int count = 4;
  static constexpr int used_later = 1, done_early = 2;  // bits of a cell
};

class BatchStream {
 public:
  /// matcher may be null: no matches. planner, if any, plans every batch's f-grams, on the
  /// stream's thread, which then is collective over the planner's world: all ranks must make their
  /// streams and call next() alike. The corpora, matcher and planner must outlive this. Throws
  /// InputError for a corpus shorter than one sequence + 1 token, or fewer sequences in a batch
  /// than data-parallel ranks.
  BatchStream(const TokenMixture& mixture, const FgramMatcher* matcher,
              const BatchStreamOptions& options, DataState start = {},
              FgramPlanner* planner = nullptr);
  /// With a planner: waits for the batches begun, which other ranks may need, unless an exception
  /// is on its way.
  ~BatchStream();
  /// The next batch; waits where it is not ready. Errors of the preparing thread are rethrown here.
  Batch next();
  /// The same, into `batch`, a batch that is no longer used or an empty one; its memory is used
  /// again, which spares the system fresh pages for every batch.
  void next(Batch& batch);
  double last_wait_seconds() const;
  std::int64_t samples_per_epoch() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
