#pragma once

#include <cstdint>
#include <vector>

#include "data/ngram_counter.h"
#include "data/ngram_key.h"
#include "parallel/communicator.h"

namespace scone {

/// Which of the counted n-grams are f-grams: those that rank (count descending, shorter first, then
/// lexicographic by token ids) no lower than the last one taken.
struct FgramSelection {
  std::int64_t size = 0;  // f-grams
  std::uint64_t cutoff_count = 0;
  int cutoff_length = 0;
  NgramKey<4> cutoff_key;

  template <int Words>
  bool holds(int length, const NgramRecord<Words>& record) const {
    if (record.count != cutoff_count) return record.count > cutoff_count;
    if (length != cutoff_length) return length < cutoff_length;
    return widened(record.key) <= cutoff_key;
  }
  template <int Words>
  static NgramKey<4> widened(const NgramKey<Words>& key) {
    NgramKey<4> wide;
    for (std::size_t w = 0; w < Words; ++w) wide.words[4 - Words + w] = key.words[w];
    return wide;
  }
};

/// Finds the last of the first `size` n-grams of all ranks, digit by digit of its count, then of
/// its key, by passes over the files; nothing is sorted. Collective; levels: of count_ngrams, not
/// empty.
FgramSelection select_fgrams(Communicator& communicator, const std::vector<NgramLevelFile>& levels,
                             int bits, std::int64_t size);

}  // namespace scone
