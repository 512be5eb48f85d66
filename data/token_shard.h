#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace scone {

/// What a shard says of the tokenizer that made its tokens.
struct ShardTokenizer {
  std::string fingerprint;
  std::int64_t vocabulary_size = 0;
  std::int32_t end_of_document = -1;  // -1: none
};

/// 16 hex digits of XXH3-64 over the bytes of a shard's tokens, then those of its document offsets.
std::string shard_checksum(std::span<const std::byte> tokens, std::span<const std::byte> offsets);

/// A shard's attribute "format".
inline constexpr const char* kTokenShardFormat = "scone-tokens";

/// Totals of what a writer was given.
struct ShardTotals {
  std::int64_t documents = 0, tokens = 0, text_bytes = 0, shards = 0;
};

/// Writes documents as token shards shard-00000.h5, shard-00001.h5, .. into one folder. A shard is
/// an HDF5 file with the contiguous datasets /tokens (uint16 where the vocabulary has at most
/// 65,536 tokens, else uint32) and /document_offsets (int64, [documents + 1], from 0 to its number
/// of tokens), and attributes of the root group: format "scone-tokens", format_version 1,
/// tokenizer_fingerprint, vocabulary_size, end_of_document, tokens, documents, text_bytes, checksum
/// (16 hex digits of XXH3-64 over the tokens' bytes, then the offsets' bytes). The bytes depend on
/// the documents and their order alone. Holds one shard in memory. Write errors throw InputError
/// that names the file and the space left: the folder is full or read-only.
class TokenShardWriter {
 public:
  /// folder: exists. first_shard: number of the first shard's name. A shard ends before the
  /// document with which it would have more than shard_tokens tokens (a longer document is a shard
  /// by itself). Throws std::invalid_argument: shard_tokens < 1.
  TokenShardWriter(std::filesystem::path folder, ShardTokenizer tokenizer,
                   std::int64_t shard_tokens, std::int64_t first_shard = 0);

  /// Appends a document. Throws std::logic_error for an id outside the vocabulary.
  void add(std::span<const std::int32_t> tokens, std::int64_t text_bytes);
  /// Writes what is left. Nothing may be added after it.
  void finish();

  const ShardTotals& totals() const { return totals_; }

 private:
  void write_shard();

  std::filesystem::path folder_;
  ShardTokenizer tokenizer_;
  std::int64_t shard_tokens_;
  std::int64_t first_shard_;
  ShardTotals totals_;
  // The shard being filled; one of the two holds its tokens.
  std::vector<std::uint16_t> short_tokens_;
  std::vector<std::uint32_t> long_tokens_;
  std::vector<std::int64_t> offsets_{0};
  std::int64_t shard_text_bytes_ = 0;
};

}  // namespace scone
