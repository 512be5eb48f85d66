#include "data/fgram_index.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>

namespace scone {

FgramIndex::FgramIndex(std::int64_t entries, std::int64_t prefixes, std::int64_t tokens,
                       std::uint64_t buckets) {
  const auto bits_below = [](std::int64_t bound) {
    return std::max(1U, static_cast<unsigned>(std::bit_width(
                            static_cast<std::uint64_t>(std::max<std::int64_t>(bound - 1, 1)))));
  };
  token_bits_ = bits_below(tokens);
  bits_ = token_bits_ + bits_below(prefixes);
  half_ = (bits_ + 1) / 2;
  mask_ = (std::uint64_t{1} << bits_) - 1;
  // 82 slots of 100 are used. All keys that may lie in a bucket must differ in their lowest 32
  // bits: those of it and of the buckets before it are a stretch of at most 2^32 numbers.
  const std::uint64_t dense = static_cast<std::uint64_t>(entries) * 100 / (82 * slots) + 1;
  const std::uint64_t exact = bits_ > 32 ? (farthest + 1) << (bits_ - 32) : 1;
  count_ = std::max({buckets, dense, exact});
  buckets_ = PageBuffer<Bucket>(static_cast<std::size_t>(count_ + farthest));
  // Where most of it stays empty, small pages keep it small.
  if (dense >= exact) ::madvise(buckets_.data(), buckets_.size() * sizeof(Bucket), MADV_HUGEPAGE);
}

FgramIndex::Inserted FgramIndex::insert(std::uint32_t prefix, std::uint32_t token,
                                        std::uint32_t id) {
  const std::uint64_t key = scattered(prefix, token);
  const auto tag = static_cast<std::uint32_t>(key);
  const std::uint64_t home = bucket_of(key);
  for (std::uint64_t at = home; at < home + farthest; ++at) {
    Bucket& bucket = buckets_[static_cast<std::size_t>(at)];
    for (unsigned i = 0; i < slots; ++i) {
      if ((bucket.ids[i] & ~overflow) == 0) {
        bucket.tags[i] = tag;
        bucket.ids[i] = id + 1;
        return Inserted::yes;
      }
      if (bucket.tags[i] == tag) return Inserted::twice;
    }
    bucket.ids[slots - 1] |= overflow;
  }
  return Inserted::full;
}

bool FgramIndex::close() const {
  // A look-up goes on as long as keys went by, and must not come to where its tag may be another's.
  std::uint64_t run = 0;
  for (const Bucket& bucket : buckets_.span()) {
    run = (bucket.ids[slots - 1] & overflow) != 0 ? run + 1 : 0;
    if (run + 1 >= farthest) return false;
  }
  return true;
}

}  // namespace scone
