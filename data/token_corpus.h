#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace scone {

/// What a token shard's attributes say.
struct ShardInfo {
  std::filesystem::path path;
  std::string tokenizer_fingerprint;
  std::int64_t vocabulary_size = 0;
  std::int32_t end_of_document = -1;
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::int64_t text_bytes = 0;
  std::string checksum;  // of the token dataset's bytes and document offsets
};

/// Token shards in the order of their sorted paths, seen as one sequence of tokens with document
/// boundaries. Reads go around the HDF5 library (contiguous dataset: offset + mmap) and are safe
/// from several threads.
class TokenCorpus {
 public:
  /// paths: shard files or folders of *.h5. Throws InputError where there is none, one is truncated
  /// or foreign, or tokenizers differ.
  explicit TokenCorpus(const std::vector<std::filesystem::path>& paths);
  ~TokenCorpus();
  TokenCorpus(const TokenCorpus&) = delete;

  const std::vector<ShardInfo>& shards() const;
  std::int64_t tokens() const;
  std::int64_t documents() const;
  std::int64_t vocabulary_size() const;
  const std::string& tokenizer_fingerprint() const;
  /// 16 hex digits over the shards' checksums in order.
  std::string fingerprint() const;
  /// Where the tokenizer that travels with the shards lies: the first shard's folder or its parent.
  std::filesystem::path tokenizer_path() const;

  /// out[i] = token first + i. Throws std::out_of_range; InputError at an id >= vocabulary_size,
  /// naming the shard.
  void read(std::int64_t first, std::span<std::int32_t> out) const;
  /// Start of the document that holds token `position`, and the end (exclusive).
  struct Range {
    std::int64_t begin, end;
  };
  Range document_of(std::int64_t position) const;  // binary search
  Range document(std::int64_t index) const;        // by number

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
