#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace scone {

/// What finds the f-grams of a text: an f-gram vocabulary, or the index of a baked table.
/// Immutable, safe to use from several threads.
class FgramMatcher {
 public:
  virtual ~FgramMatcher() = default;

  virtual std::int64_t size() const = 0;  // ids are below it
  virtual int max_length() const = 0;     // K: the longest f-gram found
  virtual const std::string& tokenizer_fingerprint() const = 0;
  virtual std::string fingerprint() const = 0;  // of the keys in the order of their ids, and of K

  /// Longest match ending at each position of one document piece: ids[i] is the f-gram with the
  /// smallest start >= the piece's begin that ends at i, or -1. O(positions x K) probes. Throws
  /// std::invalid_argument for unequal sizes.
  virtual void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids) const = 0;
  /// The same, and lengths[i]: tokens of the match; 0: none.
  virtual void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids,
                     std::span<std::uint8_t> lengths) const = 0;
  /// The same ids where the lengths of the matches are known: lengths[i] is 0, or 2..i + 1. Returns
  /// the first position at which no f-gram of that length ends; tokens.size(): there is none.
  virtual std::size_t match_of_lengths(std::span<const std::int32_t> tokens,
                                       std::span<const std::uint8_t> lengths,
                                       std::span<std::int64_t> ids) const = 0;

 protected:
  FgramMatcher() = default;
  FgramMatcher(const FgramMatcher&) = default;
  FgramMatcher& operator=(const FgramMatcher&) = default;
};

}  // namespace scone
