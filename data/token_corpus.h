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

/// What becomes of a folder whose shards are not those of the list beside them.
enum class ChangedShards { refuse, allow };

/// Token shards in the order of their sorted paths, seen as one sequence of tokens with document
/// boundaries. Reads go around the HDF5 library (contiguous datasets: offset + mmap) and are safe
/// from several threads. Positions and counts have 64 bits; tokens and document offsets stay in
/// the files.
class TokenCorpus {
 public:
  /// paths: shard files or folders of *.h5. Throws InputError where there is none, some are
  /// truncated or foreign, or tokenizers differ, naming each such shard; and where a folder's
  /// shards are missing, changed or more than its list says (shards.json), unless that is allowed.
  /// Shards given by name are taken as they are.
  explicit TokenCorpus(const std::vector<std::filesystem::path>& paths,
                       ChangedShards changed = ChangedShards::refuse);
  ~TokenCorpus();
  TokenCorpus(const TokenCorpus&) = delete;

  const std::vector<ShardInfo>& shards() const;
  /// What ChangedShards::allow let pass, a line each shard.
  const std::vector<std::string>& changes() const;
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
  /// The window inputs[i] = token first + i, and the one after it: targets[i] = token first + i
  /// + 1. Of one size. Throws as read() does.
  void read_window(std::int64_t first, std::span<std::int32_t> inputs,
                   std::span<std::int32_t> targets) const;
  /// Begins reading tokens first, .., first + count - 1 from disk, one request for each shard that
  /// they lie in, without waiting. What lies outside the corpus is left out.
  void will_read(std::int64_t first, std::int64_t count) const;
  /// Whether they are in the page cache.
  bool is_cached(std::int64_t first, std::int64_t count) const;
  /// Start of the document that holds token `position`, and the end (exclusive).
  struct Range {
    std::int64_t begin, end;
  };
  Range document_of(std::int64_t position) const;  // binary search
  Range document(std::int64_t index) const;        // by number, empty ones left out
  /// The ends (exclusive) of the documents that hold tokens first, .., first + count - 1, in order:
  /// one search for all of them. Replaces what `ends` held. Throws std::out_of_range.
  void document_ends(std::int64_t first, std::int64_t count, std::vector<std::int64_t>& ends) const;

 private:
  /// visit(file, offset, bytes) for each file's part, until one returns false; whether none did.
  template <class Visit>
  bool for_each_part(std::int64_t first, std::int64_t count, const Visit& visit) const;

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
