#include "data/byte_bpe_merges.h"

#include <limits>
#include <queue>

namespace scone {
namespace {

/// Up to this many bytes, scanning all pairs for each merge is faster than a heap.
constexpr std::size_t kShortWord = 48;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

}  // namespace

void ByteBpeMerges::add(std::int32_t left, std::int32_t right, std::int32_t merged) {
  merges_.try_emplace(pair_key(left, right), Rule{next_rank_++, merged});
}

const ByteBpeMerges::Rule* ByteBpeMerges::find(std::int32_t left, std::int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void ByteBpeMerges::encode(std::string_view word, std::vector<std::int32_t>& ids) const {
  if (word.size() <= kShortWord) {
    encode_short(word, ids);
  } else {
    encode_long(word, ids);
  }
}

void ByteBpeMerges::encode_short(std::string_view word, std::vector<std::int32_t>& ids) const {
  constexpr std::int32_t kNoRule = std::numeric_limits<std::int32_t>::max();
  std::array<std::int32_t, kShortWord> symbols{};
  std::array<Rule, kShortWord> rules{};  // [i]: of the pair (i, i + 1)
  const auto rule_of = [&](std::size_t i) {
    const Rule* rule = find(symbols[i], symbols[i + 1]);
    return rule ? *rule : Rule{kNoRule, -1};
  };
  std::size_t size = word.size();
  for (std::size_t i = 0; i < size; ++i) {
    symbols[i] = id_of_byte_[static_cast<unsigned char>(word[i])];
  }
  for (std::size_t i = 0; i + 1 < size; ++i) rules[i] = rule_of(i);
  while (size > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < size; ++i) {
      if (rules[i].rank < rules[best].rank) best = i;
    }
    if (rules[best].rank == kNoRule) break;
    symbols[best] = rules[best].merged;
    --size;
    for (std::size_t i = best + 1; i < size; ++i) {
      symbols[i] = symbols[i + 1];
      rules[i] = rules[i + 1];
    }
    if (best > 0) rules[best - 1] = rule_of(best - 1);
    if (best + 1 < size) rules[best] = rule_of(best);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.begin() + static_cast<std::ptrdiff_t>(size));
}

void ByteBpeMerges::encode_long(std::string_view word, std::vector<std::int32_t>& ids) const {
  constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();
  struct Symbol {
    std::int32_t id;  // -1: merged into the symbol before it
    std::size_t previous, next;
  };
  struct Candidate {
    std::int32_t rank;
    std::size_t position;  // of the left symbol
    std::int32_t left, right, merged;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  std::vector<Symbol> symbols(word.size());
  for (std::size_t i = 0; i < word.size(); ++i) {
    symbols[i] = {id_of_byte_[static_cast<unsigned char>(word[i])], i == 0 ? kNone : i - 1,
                  i + 1 == word.size() ? kNone : i + 1};
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto offer = [&](std::size_t position) {
    if (position == kNone || symbols[position].next == kNone) return;
    const std::int32_t left = symbols[position].id;
    const std::int32_t right = symbols[symbols[position].next].id;
    if (const Rule* rule = find(left, right)) {
      candidates.push({rule->rank, position, left, right, rule->merged});
    }
  };
  for (std::size_t i = 0; i < symbols.size(); ++i) offer(i);
  while (!candidates.empty()) {
    const Candidate candidate = candidates.top();
    candidates.pop();
    Symbol& left = symbols[candidate.position];
    // Either symbol may have been merged with another since.
    if (left.id != candidate.left || left.next == kNone ||
        symbols[left.next].id != candidate.right) {
      continue;
    }
    Symbol& right = symbols[left.next];
    left.id = candidate.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next != kNone) symbols[left.next].previous = candidate.position;
    offer(left.previous);
    offer(candidate.position);
  }
  for (std::size_t i = 0; i != kNone; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace scone
