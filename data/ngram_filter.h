#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "data/memory_budget.h"
#include "parallel/communicator.h"

namespace scone {

/// Divides n-grams by the hash of their keys: over the ranks, and a rank's over partitions.
struct NgramDivision {
  std::uint64_t ranks = 1, partitions = 1;  // partitions: of each rank

  /// Of all partitions, rank by rank.
  std::size_t partition(std::uint64_t hash) const {
    return static_cast<std::size_t>((hash >> 32U) * (ranks * partitions) >> 32U);
  }
  std::size_t rank(std::uint64_t hash) const {
    return static_cast<std::size_t>((hash >> 32U) * ranks >> 32U);
  }
};

/// A Bloom filter of n-grams by their hashes, each of four bits in one word; the words of each
/// rank's n-grams lie together. It may take a foreign n-gram for one of its own, never the reverse.
class NgramFilter {
 public:
  /// Collective. keys: how many n-grams this rank adds. At most `most_bytes` in all, twice that
  /// while it is made; 12 bits an n-gram where they fit. each: calls its argument with the hash of
  /// every n-gram of this rank's share (NgramDivision::rank).
  NgramFilter(Communicator& communicator, std::int64_t keys, std::int64_t most_bytes,
              const std::function<void(const std::function<void(std::uint64_t)>&)>& each);

  void prefetch(std::uint64_t hash) const { __builtin_prefetch(&words_[word_of(hash)]); }
  bool holds(std::uint64_t hash) const {
    const std::uint64_t bits = bits_of(hash);
    return (words_[word_of(hash)] & bits) == bits;
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(words_.size() * 8); }

 private:
  struct Segment {
    std::uint64_t begin, size;  // in words
  };
  static std::uint64_t in_segment(std::uint64_t hash, std::uint64_t size) {
    return (hash & 0xFFFFFFFFU) * size >> 32U;
  }
  std::size_t word_of(std::uint64_t hash) const {
    const Segment& segment = segments_[(hash >> 32U) * segments_.size() >> 32U];
    return static_cast<std::size_t>(segment.begin + in_segment(hash, segment.size));
  }
  static std::uint64_t bits_of(std::uint64_t hash) {
    const std::uint64_t mixed = hash * 0x9E3779B97F4A7C15U;
    return std::uint64_t{1} << (mixed >> 58U) | std::uint64_t{1} << (mixed >> 52U & 63U) |
           std::uint64_t{1} << (mixed >> 46U & 63U) | std::uint64_t{1} << (mixed >> 40U & 63U);
  }

  std::vector<Segment> segments_;  // of each rank
  PageBuffer<std::uint64_t> words_;
};

}  // namespace scone
