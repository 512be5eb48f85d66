#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/fgram_vocabulary.h"
#include "data/ngram_counter.h"
#include "data/token_corpus.h"
#include "parallel/communicator.h"

namespace scone {

struct FgramBuildOptions {
  std::int64_t size = 0;  // S: how many of the survivors at most
  int max_length = 5;     // K
  std::int64_t min_count = 5;
  std::int64_t memory_bytes = 4'000'000'000;  // of each rank
  std::function<void(const std::string&)>
      progress;  // a line for the user, on every rank; may be empty
};

struct FgramBuildResult {
  FgramVocabularyContents contents;
  std::vector<std::int64_t>
      survivors;  // [K + 1]: n-grams of each length that reached the minimum count
  std::vector<std::int64_t> chosen;  // [K + 1]: those of them in the vocabulary
  std::int64_t total_survivors = 0;
  std::int64_t cutoff_count = 0;  // count of the last f-gram chosen
};

/// Ranks all survivors together (count descending, shorter first, then lexicographic by token ids)
/// and takes the first options.size. The result is closed under prefix and suffix. levels: of
/// count_ngrams, not empty.
FgramBuildResult choose_fgrams(const std::vector<NgramLevel>& levels,
                               const FgramBuildOptions& options);

/// Builds V_fgram of a corpus. Collective; the result is the same on every rank and for every
/// number of ranks. n-grams are over a document's tokens, its end-of-document token (the last,
/// where the tokenizer has one) included. Throws InputError: options out of range, too little
/// memory (with the figure needed), no n-gram reaches the count.
FgramBuildResult build_fgram_vocabulary(Communicator& communicator, const TokenCorpus& corpus,
                                        const FgramBuildOptions& options);

/// The documents [first, last) that a rank counts: contiguous, of about equal tokens over the
/// ranks.
struct DocumentSlice {
  std::int64_t first = 0, last = 0;
};
DocumentSlice documents_of_rank(const TokenCorpus& corpus, int rank, int ranks);

}  // namespace scone
