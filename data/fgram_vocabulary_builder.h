#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "data/ngram_counter.h"
#include "data/token_corpus.h"
#include "parallel/communicator.h"

namespace scone {

struct FgramBuildOptions {
  std::int64_t size = 0;  // S: how many of the survivors at most
  int max_length = 5;     // K
  std::int64_t min_count = 5;
  std::int64_t memory_bytes = 4'000'000'000;  // of each rank, as NgramCounterOptions has it
  std::int64_t program_bytes = 0;
  std::filesystem::path spill;  // folder for temporary files; empty: OUTPUT.spill
  std::function<void(const NgramProgress&)> progress;  // on every rank; may be empty
};

struct FgramBuildResult {
  std::int64_t size = 0;  // f-grams in the file
  std::vector<std::int64_t>
      survivors;  // [K + 1]: n-grams of each length that reached the minimum count
  std::vector<std::int64_t> chosen;  // [K + 1]: those of them in the vocabulary
  std::int64_t total_survivors = 0;
  std::int64_t cutoff_count = 0;  // count of the last f-gram chosen
};

/// Builds V_fgram of a corpus and writes it as the file `output`: the n-grams that occur often
/// enough ranked together (count descending, shorter first, then lexicographic by token ids), the
/// first options.size of them. Collective; the file does not depend on ranks, memory or threads.
/// n-grams are over a document's tokens, its end-of-document token (the last, where the tokenizer
/// has one) included. The temporary folder is removed at the end, also after an error; where the
/// process was killed, the next call with the same output goes on from the scans that were done.
/// Throws InputError: options out of range, too little memory (with the figure needed) or disk, a
/// folder in use, no n-gram that reaches the count.
FgramBuildResult build_fgram_vocabulary(Communicator& communicator, const TokenCorpus& corpus,
                                        const FgramBuildOptions& options,
                                        const std::filesystem::path& output);

/// The documents [first, last) that a rank counts: contiguous, of about equal tokens over the
/// ranks.
struct DocumentSlice {
  std::int64_t first = 0, last = 0;
};
DocumentSlice documents_of_rank(const TokenCorpus& corpus, int rank, int ranks);

}  // namespace scone
