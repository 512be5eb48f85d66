#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace scone {

/// The merge rules of a byte-level BPE over token ids. Immutable once filled; safe to use from
/// several threads.
class ByteBpeMerges {
 public:
  void set_byte(unsigned char byte, std::int32_t id) { id_of_byte_[byte] = id; }
  void reserve(std::size_t merges) { merges_.reserve(merges); }
  /// Rules are added in the order of their rank; a pair's first rule holds.
  void add(std::int32_t left, std::int32_t right, std::int32_t merged);

  /// Appends the ids of one word: merges the pair of lowest rank first, the leftmost of equals,
  /// until no rule applies. O(n log n) in the word's bytes.
  void encode(std::string_view word, std::vector<std::int32_t>& ids) const;

 private:
  struct Rule {
    std::int32_t rank, merged;
  };
  const Rule* find(std::int32_t left, std::int32_t right) const;
  void encode_short(std::string_view word, std::vector<std::int32_t>& ids) const;
  void encode_long(std::string_view word, std::vector<std::int32_t>& ids) const;

  std::array<std::int32_t, 256> id_of_byte_{};
  std::unordered_map<std::uint64_t, Rule> merges_;  // key: left << 32 | right
  std::int32_t next_rank_ = 0;
};

}  // namespace scone
