#include "data/ngram_counter.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace scone {
namespace {

struct KeyCount {
  std::uint64_t key;
  std::int64_t count;
};

/// Spreads keys evenly over buckets and slots (multiply and fold; keys are products of ids, far
/// from random).
std::uint64_t hash_key(std::uint64_t key) {
  key ^= key >> 32U;
  key *= 0xD6E8FEB86659FD93U;
  key ^= key >> 32U;
  key *= 0xD6E8FEB86659FD93U;
  return key ^ (key >> 32U);
}

constexpr int smallest_bucket_bits = 8;

/// Buckets divide the keys by hash; rank r owns buckets [r * buckets / ranks, (r + 1) * buckets /
/// ranks).
class Buckets {
 public:
  explicit Buckets(int ranks)
      : bits_(std::max(smallest_bucket_bits,
                       2 + static_cast<int>(std::bit_width(static_cast<unsigned>(ranks))))),
        ranks_(static_cast<std::size_t>(ranks)) {}
  std::size_t size() const { return std::size_t{1} << static_cast<unsigned>(bits_); }
  std::size_t of(std::uint64_t key) const {
    return static_cast<std::size_t>(hash_key(key) >> static_cast<unsigned>(64 - bits_));
  }
  std::size_t first_of_rank(std::size_t rank) const { return rank * size() / ranks_; }

 private:
  int bits_;
  std::size_t ranks_;
};

/// Key to index, open addressing with linear probing. Immutable once built.
class SurvivorIndex {
 public:
  explicit SurvivorIndex(const std::vector<std::uint64_t>& keys)
      : mask_(std::bit_ceil(std::max<std::size_t>(16, keys.size() * 3 / 2)) - 1),
        slots_(mask_ + 1, Slot{empty_, -1}) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      std::size_t slot = hash_key(keys[i]) & mask_;
      while (slots_[slot].key != empty_) slot = (slot + 1) & mask_;
      slots_[slot] = {keys[i], static_cast<std::int32_t>(i)};
    }
  }
  std::int32_t find(std::uint64_t key) const {
    for (std::size_t slot = hash_key(key) & mask_;; slot = (slot + 1) & mask_) {
      if (slots_[slot].key == key) return slots_[slot].index;
      if (slots_[slot].key == empty_) return -1;
    }
  }
  void prefetch(std::uint64_t key) const { __builtin_prefetch(&slots_[hash_key(key) & mask_]); }

 private:
  struct Slot {
    std::uint64_t key;
    std::int32_t index;
  };
  static constexpr std::uint64_t empty_ = std::numeric_limits<std::uint64_t>::max();
  std::size_t mask_;
  std::vector<Slot> slots_;
};

/// The candidates of one scan: calls visit(position, key) for those among positions [begin, end).
/// `at` holds, for each position, the index of the surviving (n-1)-gram that starts there (-1:
/// none); for n = 2 the token itself, or -1 where the next token is in another document.
class Candidates {
 public:
  Candidates(std::span<const std::int32_t> tokens, std::span<const std::int32_t> at, int length)
      : tokens_(tokens), at_(at), length_(static_cast<std::size_t>(length)) {}

  static constexpr std::uint64_t none = std::numeric_limits<std::uint64_t>::max();

  std::size_t positions() const {
    return tokens_.size() >= length_ ? tokens_.size() - length_ + 1 : 0;
  }
  /// The key of the candidate that starts at `position`; none where there is none.
  std::uint64_t key(std::size_t position) const {
    if (at_[position] < 0) return none;
    // A surviving (n-1)-gram lies inside one document, so two that overlap lie inside the same one.
    // For n = 2 nothing overlaps, and -1 in `at` marks a document's last token.
    if (length_ > 2 && at_[position + 1] < 0) return none;
    return static_cast<std::uint64_t>(at_[position]) << 32U |
           static_cast<std::uint32_t>(tokens_[position + length_ - 1]);
  }

 private:
  std::span<const std::int32_t> tokens_;
  std::span<const std::int32_t> at_;
  std::size_t length_;
};

/// Splits [0, total) evenly; the begin of part `part` of `parts`.
std::size_t part_begin(std::size_t total, int part, int parts) {
  return total * static_cast<std::size_t>(part) / static_cast<std::size_t>(parts);
}

/// This rank's distinct candidates and their counts, bucket after bucket, ascending inside a
/// bucket. Keys counted less than min_count are left out (1 keeps all). pieces[b]: the pairs of
/// bucket b.
std::vector<std::vector<KeyCount>> count_local(const Candidates& candidates, const Buckets& buckets,
                                               std::int64_t min_count) {
  const std::size_t positions = candidates.positions();
  const int threads = omp_get_max_threads();
  const std::size_t bucket_count = buckets.size();
  std::vector<std::size_t> cursor(static_cast<std::size_t>(threads) * bucket_count, 0);
  std::vector<std::size_t> bucket_begin(bucket_count + 1, 0);
  std::vector<std::uint64_t> keys;
  std::vector<std::vector<KeyCount>> pieces(bucket_count);
#pragma omp parallel num_threads(threads)
  {
    const int team = omp_get_num_threads();
    const int thread = omp_get_thread_num();
    const std::size_t begin = part_begin(positions, thread, team);
    const std::size_t end = part_begin(positions, thread + 1, team);
    std::size_t* own = cursor.data() + static_cast<std::size_t>(thread) * bucket_count;
    for (std::size_t p = begin; p < end; ++p) {
      const std::uint64_t key = candidates.key(p);
      if (key != Candidates::none) ++own[buckets.of(key)];
    }
#pragma omp barrier
#pragma omp single
    {
      std::size_t total = 0;
      for (std::size_t b = 0; b < bucket_count; ++b) {
        bucket_begin[b] = total;
        for (int t = 0; t < team; ++t) {
          std::size_t& count = cursor[static_cast<std::size_t>(t) * bucket_count + b];
          const std::size_t here = total;
          total += count;
          count = here;
        }
      }
      bucket_begin[bucket_count] = total;
      keys.resize(total);
    }
    for (std::size_t p = begin; p < end; ++p) {
      const std::uint64_t key = candidates.key(p);
      if (key != Candidates::none) keys[own[buckets.of(key)]++] = key;
    }
#pragma omp barrier
#pragma omp for schedule(dynamic)
    for (std::size_t b = 0; b < bucket_count; ++b) {
      std::uint64_t* first = keys.data() + bucket_begin[b];
      std::uint64_t* last = keys.data() + bucket_begin[b + 1];
      std::sort(first, last);
      while (first < last) {
        std::uint64_t* next = first;
        while (next < last && *next == *first) ++next;
        if (next - first >= min_count) pieces[b].push_back({*first, next - first});
        first = next;
      }
    }
  }
  return pieces;
}

/// Sends each pair to the rank that owns its bucket; returns the sums of the pairs this rank owns.
std::vector<KeyCount> exchange_pairs(Communicator& communicator, const Buckets& buckets,
                                     std::vector<std::vector<KeyCount>> pieces) {
  const auto ranks = static_cast<std::size_t>(communicator.size());
  std::vector<std::int64_t> send_counts(ranks, 0);
  std::vector<KeyCount> send;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    for (std::size_t b = buckets.first_of_rank(rank); b < buckets.first_of_rank(rank + 1); ++b) {
      send_counts[rank] += static_cast<std::int64_t>(pieces[b].size());
      send.insert(send.end(), pieces[b].begin(), pieces[b].end());
      std::vector<KeyCount>().swap(pieces[b]);
    }
  }
  const std::vector<std::int64_t> receive_counts = communicator.exchange_counts(send_counts);
  std::vector<KeyCount> received(static_cast<std::size_t>(
      std::accumulate(receive_counts.begin(), receive_counts.end(), std::int64_t{0})));
  communicator.all_to_all(std::as_bytes(std::span(send)), send_counts,
                          std::as_writable_bytes(std::span(received)), receive_counts,
                          sizeof(KeyCount));
  std::vector<KeyCount>().swap(send);
  std::sort(received.begin(), received.end(),
            [](const KeyCount& a, const KeyCount& b) { return a.key < b.key; });
  std::size_t kept = 0;
  for (std::size_t i = 0; i < received.size(); ++i) {
    if (kept > 0 && received[kept - 1].key == received[i].key) {
      received[kept - 1].count += received[i].count;
    } else {
      received[kept++] = received[i];
    }
  }
  received.resize(kept);
  return received;
}

/// The survivors of all ranks, on every rank, ascending by key.
NgramLevel gather_survivors(Communicator& communicator, const std::vector<KeyCount>& own) {
  std::vector<KeyCount> all;
  for (const std::vector<std::byte>& bytes :
       communicator.all_gather(std::as_bytes(std::span(own)))) {
    const std::size_t before = all.size();
    all.resize(before + bytes.size() / sizeof(KeyCount));
    if (!bytes.empty()) std::memcpy(all.data() + before, bytes.data(), bytes.size());
  }
  std::sort(all.begin(), all.end(),
            [](const KeyCount& a, const KeyCount& b) { return a.key < b.key; });
  NgramLevel level;
  level.keys.reserve(all.size());
  level.counts.reserve(all.size());
  for (const KeyCount& pair : all) {
    level.keys.push_back(pair.key);
    level.counts.push_back(pair.count);
  }
  return level;
}

/// Replaces, at each position, the index of the (n-1)-gram that starts there by that of the
/// surviving n-gram, or -1.
void advance_index(const Candidates& candidates, const NgramLevel& level,
                   std::vector<std::int32_t>& at) {
  const SurvivorIndex index(level.keys);
  std::vector<std::int32_t> next(at.size(), -1);
  const auto positions = static_cast<std::int64_t>(candidates.positions());
  constexpr std::int64_t block = 64;
#pragma omp parallel for schedule(static)
  for (std::int64_t begin = 0; begin < positions; begin += block) {
    const std::int64_t end = std::min(begin + block, positions);
    std::uint64_t keys[block];
    for (std::int64_t p = begin; p < end; ++p) {
      keys[p - begin] = candidates.key(static_cast<std::size_t>(p));
      if (keys[p - begin] != Candidates::none) index.prefetch(keys[p - begin]);
    }
    for (std::int64_t p = begin; p < end; ++p) {
      const std::uint64_t key = keys[p - begin];
      if (key != Candidates::none) next[static_cast<std::size_t>(p)] = index.find(key);
    }
  }
  at.swap(next);
}

}  // namespace

std::vector<NgramLevel> count_ngrams(Communicator& communicator,
                                     std::span<const std::int32_t> tokens,
                                     std::span<const std::int64_t> document_offsets,
                                     const NgramCounterOptions& options) {
  if (options.max_length < 2 || options.min_count < 1) {
    throw std::invalid_argument("count_ngrams: max_length must be >= 2 and min_count >= 1");
  }
  if (document_offsets.empty() || document_offsets.front() != 0 ||
      document_offsets.back() != static_cast<std::int64_t>(tokens.size())) {
    throw std::invalid_argument("count_ngrams: document offsets do not span the tokens");
  }
  std::vector<std::int32_t> at(tokens.begin(), tokens.end());
  for (std::size_t d = 1; d < document_offsets.size(); ++d) {
    if (document_offsets[d] > document_offsets[d - 1]) {
      at[static_cast<std::size_t>(document_offsets[d]) - 1] = -1;
    }
  }
  const Buckets buckets(communicator.size());
  const bool alone = communicator.size() == 1;
  std::vector<NgramLevel> levels;
  for (int length = 2; length <= options.max_length; ++length) {
    const Candidates candidates(tokens, at, length);
    // A key's count is complete only after the exchange, so that other ranks' counts may lift it.
    auto pieces = count_local(candidates, buckets, alone ? options.min_count : 1);
    std::vector<KeyCount> own = exchange_pairs(communicator, buckets, std::move(pieces));
    std::erase_if(own, [&](const KeyCount& pair) { return pair.count < options.min_count; });
    NgramLevel level = gather_survivors(communicator, own);
    if (level.size() > std::numeric_limits<std::int32_t>::max()) {
      throw std::runtime_error(
          fmt::format("{} n-grams of length {} survive, more than 2^31 - 1; raise --min-count",
                      level.size(), length));
    }
    if (options.progress) {
      options.progress(fmt::format("scan {} of {}: {} n-grams of {} tokens occur {} times or more",
                                   length - 1, options.max_length - 1, level.size(), length,
                                   options.min_count));
    }
    if (level.size() == 0) break;
    if (length < options.max_length) advance_index(candidates, level, at);
    levels.push_back(std::move(level));
  }
  return levels;
}

std::int64_t ngram_counter_bytes(std::int64_t local_tokens, std::int64_t total_tokens, int ranks,
                                 const NgramCounterOptions& options) {
  // Tokens 4, index 4 and its successor 4, keys 8 a token; with several ranks the pairs sent and
  // received, 16 each (of which the vectors they grow in may hold twice the one), where every
  // candidate is distinct at worst.
  const std::int64_t per_token = ranks == 1 ? 20 : 20 + 64;
  // A survivor of a level: pair 16 (twice: gathered and merged), key and count 16, two slots of 16.
  // Levels kept: 16.
  const std::int64_t survivors = total_tokens / options.min_count;
  const std::int64_t per_survivor = 16 * 5 + 16 * static_cast<std::int64_t>(options.max_length - 1);
  return local_tokens * per_token + survivors * per_survivor;
}

}  // namespace scone
