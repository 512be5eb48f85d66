#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace scone {

/// n-grams of one length that occur at least min_count times, in lexicographic order by token ids.
/// An n-gram is its prefix and its last token: key = prefix << 32 | last token, where prefix is the
/// first token's id for n = 2, and the index of the (n-1)-gram in the level before it for n > 2.
struct NgramLevel {
  std::vector<std::uint64_t> keys;   // ascending
  std::vector<std::int64_t> counts;  // of each key, over the corpora of all ranks
  std::int64_t size() const { return static_cast<std::int64_t>(keys.size()); }
};

struct NgramCounterOptions {
  int max_length = 5;          // K >= 2
  std::int64_t min_count = 5;  // >= 1
  /// Called after each scan with a line for the user, on every rank; may be empty.
  std::function<void(const std::string&)> progress;
};

/// Counts the n-grams inside documents, 2 <= n <= max_length, in max_length - 1 scans. A candidate
/// of length n + 1 is counted only where its n-prefix and its n-suffix both survived, which loses
/// none: their counts are no smaller. Collective. tokens: this rank's documents, one after another;
/// document_offsets: [documents + 1] into tokens, from 0 to its size. Returns the levels of
/// length 2.. (index 0 is n = 2), the same on every rank and for every division of the documents;
/// it ends before the first empty level. Threads: OpenMP. Throws std::invalid_argument.
std::vector<NgramLevel> count_ngrams(Communicator& communicator,
                                     std::span<const std::int32_t> tokens,
                                     std::span<const std::int64_t> document_offsets,
                                     const NgramCounterOptions& options);

/// Bytes that count_ngrams needs at most on a rank that holds `local_tokens` of `total_tokens`, the
/// tokens included.
std::int64_t ngram_counter_bytes(std::int64_t local_tokens, std::int64_t total_tokens, int ranks,
                                 const NgramCounterOptions& options);

}  // namespace scone
