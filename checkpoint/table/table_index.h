#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace scone {

/// What an index says of itself.
struct TableIndexHeader {
  std::int64_t rows = 0;    // ids are below it
  std::int64_t unused = 0;  // of them, ids that no key has: f-grams longer than max_length
  int max_length = 0;       // K: the longest f-gram that is found
  std::int64_t token_vocabulary_size = 0;
  std::string fgrams;  // fingerprint of the keys in the order of their ids
};

/// An f-gram as its prefix and its last token.
struct TableKey {
  std::int64_t prefix = 0;  // -1 - token: a 2-gram's first; else the prefix's id, below its own
  std::int32_t last_token = 0;
  bool used = true;  // false: of an id that no key has
};

/// Exact map from token n-grams to the ids of their rows, at most 6 bytes an f-gram for token
/// vocabularies of up to 64K and 100M f-grams. What is no f-gram is never found. Immutable, safe to
/// use from several threads.
///
/// The file, and its image in memory; all numbers are little-endian. V: token_vocabulary_size; S:
/// rows; E = S - unused entries, one for each key; prefix number p: a token t is t, the f-gram of
/// id i is V + i; X = V + head_ids.
/// - Bytes 0..4095: a JSON object and spaces: "format" "scone-fgram-index", "format_version" 1,
///   "rows", "unused", "max_length", "token_vocabulary_size", "fgrams", "token_bits" (of V - 1, at
///   least 1), "id_bits" (of S - 1, at least 1), "head_ids", "head_entries", and for each section
///   {"offset", "bytes"}, which begins at the next multiple of 64.
/// - "starts", u32 [X + 1]: the children of the prefix p < X are the entries starts[p] ..
///   starts[p + 1] - 1; starts[X] is head_entries.
/// - "directory", u32 [ceil((S - head_ids) / 64)]: where in the bits of "degrees" those of id
///   head_ids + 64 b begin.
/// - "entries": entry e is the token_bits + id_bits bits from bit e * (token_bits + id_bits) on.
///   Bit 0 is the lowest of the first byte. The id is in the lowest id_bits, above them the
///   scattered last token (scatter_token in index_layout.h). Children of a prefix lie together,
///   ascending; prefixes ascend by their number. 8 bytes of zeros behind.
/// - "degrees", u64 words of bits: for each id from head_ids on a one for each child, then a zero.
///   So the children of id head_ids + t, whose bits begin at bit q, begin at entry head_entries + q
///   - t.
class TableIndex {
 public:
  /// Reads an index file whole. Throws InputError: missing, cut, foreign, or inconsistent.
  explicit TableIndex(const std::filesystem::path& path);
  ~TableIndex();
  TableIndex(TableIndex&&) noexcept;

  /// Writes an index file, and syncs it; its bytes depend on header and keys alone. key_of(id) is
  /// called several times for each id in 0..rows - 1. Throws InputError for keys that are no
  /// f-grams (a prefix not below its id, a token beyond the vocabulary, a key twice),
  /// std::runtime_error where writing fails.
  static void write(const std::filesystem::path& path, const TableIndexHeader& header,
                    const std::function<TableKey(std::int64_t id)>& key_of);

  const TableIndexHeader& header() const;
  /// Bytes in memory.
  std::int64_t memory_bytes() const;

  /// Id of an n-gram; -1: it is no f-gram (as anything of less than 2 tokens).
  std::int64_t find(std::span<const std::int32_t> ngram) const;
  /// ids[i]: of the n-gram tokens[offsets[i]] .. tokens[offsets[i + 1] - 1]; many probes are in
  /// flight. Throws std::invalid_argument for unequal sizes.
  void find(std::span<const std::int32_t> tokens, std::span<const std::int64_t> offsets,
            std::span<std::int64_t> ids) const;
  /// Longest match ending at each position: ids[i] is the f-gram with the smallest start in
  /// `tokens` that ends at i, or -1; lengths[i], where not empty: its tokens, or 0. Many probes are
  /// in flight. Throws std::invalid_argument for unequal sizes.
  void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids,
             std::span<std::uint8_t> lengths = {}) const;
  /// The keys in the order of their ids (for writing the index of the first ids anew).
  std::vector<TableKey> keys() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
