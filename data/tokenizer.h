#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace scone {

/// Text to token ids and back. Immutable and safe to use from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::int64_t vocabulary_size() const = 0;  // ids are 0..vocabulary_size-1
  /// Appends the ids of `text` (valid UTF-8) to `ids`. Special tokens in the text are encoded as
  /// plain text.
  virtual void encode(std::string_view text, std::vector<std::int32_t>& ids) const = 0;
  /// The bytes of one token as it stands in the middle of a text ("" for special tokens). Bytes of
  /// a sequence of tokens concatenate to the text (SentencePiece: but for the space put in front).
  virtual std::string token_bytes(std::int32_t id) const = 0;
  std::string decode(const std::vector<std::int32_t>& ids) const;
  virtual std::int32_t end_of_document()
      const = 0;  // id put after each document; -1: the model has none
  /// 16 hex digits of XXH3 over the tokenizer's file.
  virtual std::string fingerprint() const = 0;
  virtual std::string description() const = 0;  // "SentencePiece BPE", "byte-level BPE (GPT-2)", ..
  /// The file this was read from; copied beside shards and into bundles as tokenizer.model or
  /// tokenizer.json.
  virtual std::filesystem::path file() const = 0;
};

/// Reads tokenizer.json (Hugging Face byte-level BPE) or a SentencePiece model, told apart by
/// content. `path` may be a folder that holds tokenizer.json or tokenizer.model. Throws InputError.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path);

}  // namespace scone
