#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "data/spill_folder.h"
#include "data/token_corpus.h"
#include "parallel/communicator.h"

namespace scone {

/// Where a scan stands; tokens are those of this rank.
struct NgramProgress {
  int scan = 0, scans = 0;  // from 1
  std::int64_t tokens = 0, tokens_total = 0;
  bool merging = false;      // the spilled runs are being merged
  std::int64_t ngrams = -1;  // when a scan is done for good: how many occur often enough
  bool from_before = false;  // the scan was finished by an earlier run that was killed
  std::int64_t spilled_bytes = 0;
};

struct NgramCounterOptions {
  int max_length = 5;          // K >= 2
  std::int64_t min_count = 5;  // >= 1
  // Private memory of this process, all of it but program_bytes: what the program and its libraries
  // held before this work began (100 MB where CUDA's are among them).
  std::int64_t memory_bytes = 4'000'000'000, program_bytes = 0;
  std::function<void(const NgramProgress&)> progress;  // on every rank; may be empty
};

/// The n-grams of one length that occur at least min_count times and belong to this rank:
/// NgramRecord<words_of_key(length, bits)> one after another, in no order.
struct NgramLevelFile {
  int length = 0;
  std::int64_t records = 0, total = 0;  // of this rank, of all
  std::int64_t spilled_bytes = 0;       // by this rank, to count them
  std::filesystem::path path;
};

/// Counts the n-grams inside documents, 2 <= n <= max_length, in max_length - 1 scans over the
/// corpus. Ranks take equal shares of the positions, and own n-grams by the hash of their keys;
/// what does not fit in memory is spilled as sorted runs and merged. In scan n + 1 a candidate is
/// counted only where its n-prefix and its n-suffix may both have survived, by a filter: an n-gram
/// that occurs often enough has them, so that the filter's errors cost time and change nothing.
/// Collective; the n-grams of all ranks together do not depend on ranks, memory or threads
/// (OpenMP). Scans that an earlier run finished in the same folder, with the same corpus, ranks and
/// min_count, are taken over; the other files there are removed. Returns the levels of length 2..;
/// it ends before the first that is empty. Throws std::invalid_argument for options out of range;
/// InputError: too little memory (with a figure that would do), a disk that is full.
std::vector<NgramLevelFile> count_ngrams(Communicator& communicator, const TokenCorpus& corpus,
                                         const NgramCounterOptions& options, SpillFolder& spill);

/// Calls visit(bytes of whole records) for the level's records, block by block.
void read_level(const NgramLevelFile& level, std::size_t record_bytes,
                const std::function<void(std::span<const std::byte>)>& visit);

/// Temporary bytes that count_ngrams may write on one rank, an estimate: runs of the largest scan
/// where the candidates do not fit in memory, and the survivors.
std::int64_t estimated_spill_bytes(std::int64_t rank_tokens, int bits,
                                   const NgramCounterOptions& options);

}  // namespace scone
