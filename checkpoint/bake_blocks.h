#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/fgram_vocabulary.h"

namespace scone {

/// The f-grams of a vocabulary in blocks of `block_nodes` (the last may have fewer) that are
/// evaluated one at a time: ranges of the trie's depth-first order, so that a block needs beside
/// its own f-grams the roots above them and the ancestors of its first, at most K - 2. F-grams
/// longer than the vocabulary's max_length are in none. Blocks do not depend on the number of
/// ranks. Costs 8 bytes of memory for each f-gram, twice that while it is made.
class BakeBlocks {
 public:
  BakeBlocks(const FgramVocabulary& vocabulary, std::int64_t block_nodes);
  std::int64_t blocks() const;
  /// Ids of the f-grams of a block, ascending.
  std::span<const std::int64_t> ids(std::int64_t block) const;

 private:
  std::int64_t block_nodes_;
  std::vector<std::int64_t> ids_;  // in order of the blocks
};

}  // namespace scone
