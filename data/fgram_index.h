#pragma once

#include <cstddef>
#include <cstdint>

#include "data/memory_budget.h"

namespace scone {

/// Exact map from (prefix, token) to f-gram id, about 10 bytes an f-gram. A key is one number of
/// fewer than 64 bits; a bijection scatters it, its upper part says in which bucket it lies, and a
/// slot keeps 32 bits of it, which tell it from all others that may lie there. A bucket is one
/// cache line of eight slots; what finds it full lies in one of the next. Immutable once filled,
/// then safe from several threads.
class FgramIndex {
 public:
  struct Entry {
    std::uint32_t prefix, token;
  };

  FgramIndex() = default;
  /// entries: of how many f-grams; prefixes: references are below it; tokens: ids are below it, at
  /// most 2^22. buckets: at least that many.
  FgramIndex(std::int64_t entries, std::int64_t prefixes, std::int64_t tokens,
             std::uint64_t buckets = 0);

  enum class Inserted { yes, twice, full };
  /// full: the index must be made again with more buckets. twice: the key is there already.
  Inserted insert(Entry entry, std::uint32_t id);

  std::uint64_t scattered(std::uint32_t prefix, std::uint32_t token) const {
    std::uint64_t key = std::uint64_t{prefix} << token_bits_ | token;
    key ^= key >> half_;
    key = key * 0xD6E8FEB86659FD93U & mask_;
    key ^= key >> half_;
    key = key * 0x9E3779B97F4A7C15U & mask_;
    return key ^ key >> half_;
  }
  void prefetch(std::uint64_t scattered) const {
    __builtin_prefetch(&buckets_[bucket_of(scattered)]);
  }
  /// The id; -1: none. prefix and token are inside the bounds given.
  std::int64_t find(std::uint64_t scattered) const {
    const auto tag = static_cast<std::uint32_t>(scattered);
    const Bucket* bucket = &buckets_[bucket_of(scattered)];
    for (const Bucket* const end = bucket + farthest; bucket != end; ++bucket) {
      for (unsigned hits = matches(*bucket, tag); hits != 0; hits &= hits - 1) {
        const std::uint32_t id = bucket->ids[__builtin_ctz(hits)];
        if (id != 0) return std::int64_t{id} - 1;
      }
      if (bucket->ids[slots - 1] == 0) break;
    }
    return -1;
  }
  std::uint64_t buckets() const { return count_; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(buckets_.size() * sizeof(Bucket)); }

 private:
  static constexpr unsigned slots = 8;
  // A key lies in its bucket or in one of those behind it, of so many.
  static constexpr std::uint64_t farthest = 128;
  struct alignas(64) Bucket {
    std::uint32_t tags[slots];
    std::uint32_t ids[slots];  // id + 1; 0: free. Slots are filled from the first on
  };
  static unsigned matches(const Bucket& bucket, std::uint32_t tag) {
    unsigned hits = 0;
    for (unsigned i = 0; i < slots; ++i) hits |= unsigned{bucket.tags[i] == tag} << i;
    return hits;
  }
  std::uint64_t bucket_of(std::uint64_t scattered) const {
    return static_cast<std::uint64_t>(static_cast<unsigned __int128>(scattered) * count_ >> bits_);
  }

  unsigned token_bits_ = 1, bits_ = 2, half_ = 1;
  std::uint64_t mask_ = 3;
  std::uint64_t count_ = 1;
  PageBuffer<Bucket> buckets_;  // [count_ + farthest]
};

}  // namespace scone
