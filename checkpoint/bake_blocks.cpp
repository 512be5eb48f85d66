#include "checkpoint/bake_blocks.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace scone {

BakeBlocks::BakeBlocks(const FgramVocabulary& vocabulary, std::int64_t block_nodes)
    : block_nodes_(block_nodes) {
  if (block_nodes < 1) throw std::invalid_argument("bake blocks of less than one f-gram");
  const std::int64_t size = vocabulary.size(), tokens = vocabulary.token_vocabulary_size();
  const auto used = [&](std::int64_t id) {
    return vocabulary.length(id) <= vocabulary.max_length();
  };
  // Places of parents: tokens, then f-grams. begin[p + 1] .. begin[p + 2] at last: p's children.
  const auto parent_of = [&](std::int64_t id) {
    const std::int64_t prefix = vocabulary.prefix(id);
    return static_cast<std::size_t>(prefix < 0 ? vocabulary.first_token(id) : tokens + prefix);
  };
  std::vector<std::uint32_t> begin(static_cast<std::size_t>(tokens + size) + 2, 0);
  for (std::int64_t id = 0; id < size; ++id)
    if (used(id)) ++begin[parent_of(id) + 2];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<std::uint32_t> children(begin.back());
  for (std::int64_t id = 0; id < size; ++id)
    if (used(id)) children[begin[parent_of(id) + 1]++] = static_cast<std::uint32_t>(id);
  // Now begin[p] .. begin[p + 1] are p's children.
  ids_.reserve(children.size());
  std::vector<std::uint32_t> stack;
  const auto push_children = [&](std::size_t parent) {
    for (std::uint32_t child = begin[parent + 1]; child-- > begin[parent];)
      stack.push_back(children[child]);
  };
  for (std::int64_t token = 0; token < tokens; ++token) {
    push_children(static_cast<std::size_t>(token));
    while (!stack.empty()) {
      const std::uint32_t id = stack.back();
      stack.pop_back();
      ids_.push_back(id);
      push_children(static_cast<std::size_t>(tokens) + id);
    }
  }
  for (std::int64_t block = 0; block < blocks(); ++block) {
    const auto own = ids(block);
    const auto first = ids_.begin() + (own.data() - ids_.data());
    std::sort(first, first + static_cast<std::ptrdiff_t>(own.size()));
  }
}

std::int64_t BakeBlocks::blocks() const {
  return (static_cast<std::int64_t>(ids_.size()) + block_nodes_ - 1) / block_nodes_;
}

std::span<const std::int64_t> BakeBlocks::ids(std::int64_t block) const {
  if (block < 0 || block >= blocks()) throw std::out_of_range("no such block of the bake");
  const auto begin = static_cast<std::size_t>(block * block_nodes_);
  return std::span(ids_).subspan(
      begin, std::min(static_cast<std::size_t>(block_nodes_), ids_.size() - begin));
}

}  // namespace scone
