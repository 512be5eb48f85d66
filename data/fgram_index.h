#pragma once

#include <cstdint>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "data/memory_budget.h"

namespace scone {

/// Exact map from (prefix, token) to f-gram id, about 10 bytes an f-gram. A key is one number of
/// fewer than 64 bits; a bijection scatters it, its upper part says in which bucket it lies, and a
/// slot keeps 32 bits of it, which tell it from all others that may lie there. A bucket is one
/// cache line of eight slots; what finds it full lies in one of the next. Immutable once closed,
/// then safe from several threads.
class FgramIndex {
 private:
  struct Bucket;

 public:
  /// A look-up under way: many at once hide the memory's latency.
  struct Probe {
    const Bucket* bucket;
    std::uint32_t tag;
  };
  static constexpr std::int64_t absent = -1, further = -2;
  static constexpr std::int64_t most_fgrams = (std::int64_t{1} << 31) - 2;  // that ids count

  FgramIndex() = default;
  /// entries: of how many f-grams; prefixes: references are below it; tokens: ids are below it, at
  /// most 2^22. buckets: at least that many.
  FgramIndex(std::int64_t entries, std::int64_t prefixes, std::int64_t tokens,
             std::uint64_t buckets = 0);

  enum class Inserted { yes, twice, full };
  /// id: less than 2^31 - 1. full: the index must be made again with more buckets. twice: the key
  /// is there already.
  Inserted insert(std::uint32_t prefix, std::uint32_t token, std::uint32_t id);
  /// After the last insert. False: it must be made again with more buckets.
  bool close() const;

  /// prefix and token are inside the bounds given. The bucket is on its way into the cache.
  Probe start(std::uint32_t prefix, std::uint32_t token) const {
    const std::uint64_t key = scattered(prefix, token);
    const Probe probe{&buckets_[bucket_of(key)], static_cast<std::uint32_t>(key)};
    __builtin_prefetch(probe.bucket);
    return probe;
  }
  /// The id; absent; or further: the next bucket is on its way, and step() is to be called again.
  static std::int64_t step(Probe& probe) {
    const Bucket& bucket = *probe.bucket;
    for (unsigned hits = matches(bucket, probe.tag); hits != 0; hits &= hits - 1) {
      const std::uint32_t id = bucket.ids[__builtin_ctz(hits)] & ~overflow;
      if (id != 0) return std::int64_t{id} - 1;
    }
    if ((bucket.ids[slots - 1] & overflow) == 0) return absent;
    __builtin_prefetch(++probe.bucket);
    return further;
  }
  /// The id, or absent.
  std::int64_t find(std::uint32_t prefix, std::uint32_t token) const {
    Probe probe = start(prefix, token);
    std::int64_t id = further;
    while (id == further) id = step(probe);
    return id;
  }
  std::uint64_t buckets() const { return count_; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(buckets_.size() * sizeof(Bucket)); }

 private:
  static constexpr unsigned slots = 8;
  // A key lies in its bucket or in one of those behind it, of so many.
  static constexpr std::uint64_t farthest = 128;
  static constexpr std::uint32_t overflow = 0x80000000U;
  struct alignas(64) Bucket {
    std::uint32_t tags[slots];
    // id + 1; 0: free. Slots are filled from the first on; the last's highest bit says that a key
    // went by, into a bucket behind.
    std::uint32_t ids[slots];
  };

  /// A bit for each slot that holds the tag.
  static unsigned matches(const Bucket& bucket, std::uint32_t tag) {
#ifdef __AVX2__
    const __m256i equal =
        _mm256_cmpeq_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(bucket.tags)),
                           _mm256_set1_epi32(static_cast<int>(tag)));
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(equal)));
#else
    unsigned hits = 0;
    for (unsigned i = 0; i < slots; ++i) hits |= unsigned{bucket.tags[i] == tag} << i;
    return hits;
#endif
  }
  std::uint64_t scattered(std::uint32_t prefix, std::uint32_t token) const {
    std::uint64_t key = std::uint64_t{prefix} << token_bits_ | token;
    key ^= key >> half_;
    key = key * 0xD6E8FEB86659FD93U & mask_;
    key ^= key >> half_;
    key = key * 0x9E3779B97F4A7C15U & mask_;
    return key ^ key >> half_;
  }
  std::uint64_t bucket_of(std::uint64_t key) const {
    return static_cast<std::uint64_t>(static_cast<unsigned __int128>(key) * count_ >> bits_);
  }

  unsigned token_bits_ = 1, bits_ = 2, half_ = 1;
  std::uint64_t mask_ = 3;
  std::uint64_t count_ = 1;
  PageBuffer<Bucket> buckets_;  // [count_ + farthest]
};

}  // namespace scone
