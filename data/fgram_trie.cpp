#include "data/fgram_trie.h"

#include <algorithm>
#include <numeric>

namespace scone {
namespace {

/// A node before it has its place: the prefix' index among the f-grams (-1: a root token stands
/// above), and tokens.
struct Unplaced {
  std::int64_t parent;
  std::int32_t root;  // the first token, where parent is -1
  std::int32_t token;
};

/// The index of `id` in the ascending `all`.
std::int64_t index_of(const std::vector<std::int64_t>& all, std::int64_t id) {
  return std::lower_bound(all.begin(), all.end(), id) - all.begin();
}

}  // namespace

FgramTrie build_fgram_trie(const FgramVocabulary& vocabulary, std::span<const std::int64_t> ids) {
  // The f-grams and all their prefixes of two tokens or more.
  std::vector<std::int64_t> all;
  all.reserve(ids.size() * 2);
  for (const std::int64_t id : ids) {
    for (std::int64_t up = id; up >= 0; up = vocabulary.prefix(up)) all.push_back(up);
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());

  std::vector<Unplaced> nodes(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::int64_t prefix = vocabulary.prefix(all[i]);
    nodes[i] = {prefix < 0 ? -1 : index_of(all, prefix),
                prefix < 0 ? vocabulary.first_token(all[i]) : -1, vocabulary.last_token(all[i])};
  }
  // Siblings lie together, by token; the 2-grams first, by root and token.
  std::vector<std::int64_t> order(all.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int64_t left, std::int64_t right) {
    const Unplaced& a = nodes[static_cast<std::size_t>(left)];
    const Unplaced& b = nodes[static_cast<std::size_t>(right)];
    if (a.parent != b.parent) return a.parent < b.parent;
    if (a.root != b.root) return a.root < b.root;
    return a.token < b.token;
  });
  // first_child[i + 1]..first_child[i + 2]: the children of node i in `order`; of i = -1: all
  // 2-grams.
  std::vector<std::size_t> first_child(all.size() + 2, 0);
  for (const Unplaced& node : nodes) ++first_child[static_cast<std::size_t>(node.parent + 2)];
  std::partial_sum(first_child.begin(), first_child.end(), first_child.begin());

  FgramTrie trie;
  trie.token.reserve(all.size() * 3 / 2);
  trie.parent.reserve(all.size() * 3 / 2);
  trie.depth.reserve(all.size() * 3 / 2);
  trie.fgram.reserve(all.size() * 3 / 2);
  std::vector<std::int32_t> place(all.size());
  const auto emit = [&](std::int32_t token, std::int32_t parent, std::int32_t depth,
                        std::int64_t fgram) {
    trie.token.push_back(token);
    trie.parent.push_back(parent);
    trie.depth.push_back(depth);
    trie.fgram.push_back(fgram);
    return static_cast<std::int32_t>(trie.token.size() - 1);
  };
  std::vector<std::int64_t> stack;  // nodes to place, the next on top
  std::int32_t root_token = -1;
  std::int32_t root_place = -1;
  for (std::size_t top = 0; top < first_child[1]; ++top) {
    const Unplaced& bigram = nodes[static_cast<std::size_t>(order[top])];
    if (bigram.root != root_token) {
      root_token = bigram.root;
      root_place = emit(root_token, -1, 0, -1);
      ++trie.roots;
    }
    stack.push_back(order[top]);
    while (!stack.empty()) {
      const auto node = static_cast<std::size_t>(stack.back());
      stack.pop_back();
      const std::int64_t parent = nodes[node].parent;
      const std::int32_t parent_place =
          parent < 0 ? root_place : place[static_cast<std::size_t>(parent)];
      place[node] = emit(nodes[node].token, parent_place,
                         trie.depth[static_cast<std::size_t>(parent_place)] + 1, all[node]);
      for (std::size_t c = first_child[node + 2]; c-- > first_child[node + 1];) {
        stack.push_back(order[c]);
      }
    }
  }
  trie.node_of_fgram.reserve(ids.size());
  for (const std::int64_t id : ids) {
    trie.node_of_fgram.push_back(place[static_cast<std::size_t>(index_of(all, id))]);
  }
  return trie;
}

}  // namespace scone
