#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/fgram_vocabulary.h"

namespace scone {

/// The distinct f-grams of a batch and all their prefixes as a forest in depth-first preorder
/// (roots are single tokens, siblings and roots by token id). node_of_fgram[i] is the node of
/// ids[i].
struct FgramTrie {
  std::vector<std::int32_t> token, parent, depth;
  std::vector<std::int64_t> fgram;  // id of the node's f-gram; -1 for roots
  std::vector<std::int32_t> node_of_fgram;
  std::int64_t roots = 0;
  std::int64_t size() const { return static_cast<std::int64_t>(token.size()); }
};

/// ids: distinct f-gram ids, ascending.
FgramTrie build_fgram_trie(const FgramVocabulary& vocabulary, std::span<const std::int64_t> ids);

}  // namespace scone
