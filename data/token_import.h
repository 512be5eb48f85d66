#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/document_pieces.h"
#include "data/mapped_file.h"
#include "data/tokenizer.h"

namespace scone {

/// Token files of other trainers that `scone tokenize --from` reads.
enum class TokenFormat {
  llm_c,    // .bin: 256 int32 of header (20240520, 1: uint16; 20240801, 7: uint32), then tokens
  nanogpt,  // .bin: tokens alone, of a width that the file does not say
  megatron  // .bin and .idx: tokens, and where each sequence and document begins
};

struct TokenImportOptions {
  TokenFormat format = TokenFormat::llm_c;
  int token_bits = 16;  // nanogpt: 16 or 32
  // llm.c, nanogpt: the id that separates documents; -1: none, all is one document; -2: the
  // tokenizer's own.
  std::int64_t separator = -2;
};

/// The documents of token files: what stands between two separators (llm.c, nanoGPT: all files are
/// one sequence of tokens, so a document may go on in the next file) or what the index says
/// (Megatron). Separators around a document are taken off, the tokenizer's end of document is put
/// after it, and empty documents are left out. The text that is counted and hashed is that of the
/// decoded tokens, so that the shards are those that `scone tokenize` makes of that text, where it
/// encodes it with these tokens.
class TokenFilePieces : public DocumentPieces {
 public:
  static constexpr std::int64_t default_tokens = 2 << 20;

  /// inputs: files, or folders for all *.bin in them, by name; of Megatron also *.idx or what both
  /// names begin with. The tokenizer outlives this. Throws InputError: no such file, a header or
  /// size that does not fit, an .idx that does not fit its .bin, saying how.
  TokenFilePieces(const std::vector<std::filesystem::path>& inputs,
                  const TokenImportOptions& options, const Tokenizer& tokenizer,
                  std::int64_t piece_tokens = default_tokens);
  ~TokenFilePieces() override;

  std::int64_t count() const override;
  std::int64_t bytes(std::int64_t piece) const override;
  /// Throws InputError at an id that the tokenizer has not, naming file and place.
  TextCounts make(std::int64_t piece,
                  const std::function<void(EncodedDocument&&)>& sink) const override;
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  std::int64_t files() const;

 private:
  struct File;
  struct Span;
  void add_flat(const std::filesystem::path& path, const TokenImportOptions& options);
  void add_megatron(const std::filesystem::path& bin, std::int64_t piece_tokens);
  const File& file_of(std::int64_t position) const;
  /// The first separator at or after `position`, below `end`; `end`: none.
  std::int64_t find_separator(std::int64_t position, std::int64_t end) const;
  void make_flat(const Span& piece, TextCounts& counts,
                 const std::function<void(EncodedDocument&&)>& sink) const;
  void make_megatron(const Span& piece, TextCounts& counts,
                     const std::function<void(EncodedDocument&&)>& sink) const;
  void hand_out(std::int64_t begin, std::int64_t end, TextCounts& counts,
                const std::function<void(EncodedDocument&&)>& sink) const;

  const Tokenizer& tokenizer_;
  std::int64_t separator_ = -1;
  bool drops_first_space_ = false;        // the tokenizer puts one in front of every text
  std::vector<std::string> token_bytes_;  // by id
  std::vector<std::unique_ptr<File>> files_;
  std::int64_t tokens_ = 0;
  std::vector<Span> pieces_;
};

}  // namespace scone
