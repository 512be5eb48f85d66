#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/fgram_matcher.h"

namespace scone {

/// F-grams made in memory. Arrays are [f-grams], in the order of the ids.
struct FgramVocabularyContents {
  std::string tokenizer_fingerprint, corpus_fingerprint;
  std::int64_t token_vocabulary_size = 0, corpus_tokens = 0, min_count = 0;
  int max_length = 0;                // K that it was built with; the longest f-gram may be shorter
  std::vector<std::int64_t> prefix;  // id of the prefix; -1 - token where the prefix is one token
  std::vector<std::uint32_t> last_token;
  std::vector<std::uint8_t> length;
  std::vector<std::uint64_t> count;
};

/// The f-gram vocabulary V_fgram: ids 0..size-1 by rank (count descending, shorter first, then
/// lexicographic by token ids). Closed under prefix and suffix, so an f-gram is its prefix (a
/// token, or an f-gram of lower id) and its last token. Immutable, safe to use from several
/// threads.
class FgramVocabulary final : public FgramMatcher {
 public:
  /// Reads a file of `scone fgrams`, its first `size` f-grams (0: all) of length <= max_length (0:
  /// any). Throws InputError for a foreign or truncated file, or size beyond the file's.
  explicit FgramVocabulary(const std::filesystem::path& path, std::int64_t size = 0,
                           int max_length = 0);
  /// Of contents in memory, checked as a file's are; `source` names them in errors.
  explicit FgramVocabulary(FgramVocabularyContents contents, const std::string& source = "f-grams");
  ~FgramVocabulary() override;
  FgramVocabulary(FgramVocabulary&&) noexcept;

  /// Ids are < size(). With a max_length, ids of longer f-grams among them are never found.
  std::int64_t size() const override;
  int max_length() const override;
  std::int64_t token_vocabulary_size() const;
  const std::string& tokenizer_fingerprint() const override;
  std::string fingerprint() const override;

  std::int64_t child(std::int32_t first, std::int32_t second) const;  // id of the 2-gram; -1: none
  std::int64_t child(std::int64_t prefix_id,
                     std::int32_t token) const;  // id of prefix + token; -1: none
  std::int64_t prefix(std::int64_t id) const;  // f-gram id of the prefix; -1 when that is one token
  std::int32_t first_token(std::int64_t id) const;  // walks up
  std::int32_t last_token(std::int64_t id) const;
  int length(std::int64_t id) const;
  std::int64_t count(std::int64_t id) const;
  std::vector<std::int32_t> tokens(std::int64_t id) const;
  /// Id of the f-gram's leading 2-gram: every node of a subtree has the same, so it names the
  /// owner.
  std::int64_t leading_bigram(std::int64_t id) const;

  void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids) const override;
  void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids,
             std::span<std::uint8_t> lengths) const override;
  std::size_t match_of_lengths(std::span<const std::int32_t> tokens,
                               std::span<const std::uint8_t> lengths,
                               std::span<std::int64_t> ids) const override;

  /// Bytes in memory that look-ups and tries use: the index, prefixes and last tokens. A file's
  /// prefixes and last tokens are mapped, as are its counts and lengths, which only count() and
  /// length() read.
  std::int64_t memory_bytes() const;

  /// Writes the first size() f-grams as a file that this class reads (for bundles), under a
  /// temporary name until it is whole. The bytes depend on the f-grams alone. Throws
  /// InputError where writing fails.
  void save(const std::filesystem::path& path) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
