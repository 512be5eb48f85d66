#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "data/document_encoder.h"
#include "data/text_source.h"
#include "data/tokenizer.h"

namespace scone {

/// What becomes token shards: documents in an order, cut into pieces that can be made each by
/// itself, on any thread or rank. The cut depends on the input alone.
class DocumentPieces {
 public:
  virtual ~DocumentPieces() = default;
  virtual std::int64_t count() const = 0;
  /// Bytes of a piece on the disk.
  virtual std::int64_t bytes(std::int64_t piece) const = 0;
  /// Hands out the documents of a piece in their order, and returns what was read. Safe to call
  /// from several threads at once. Throws InputError.
  virtual TextCounts make(std::int64_t piece,
                          const std::function<void(EncodedDocument&&)>& sink) const = 0;
  /// A source of a piece's text where that is better encoded by many threads while one reads it;
  /// null: make() does. Its documents are those of make().
  virtual std::unique_ptr<TextSource> long_text(std::int64_t) const { return nullptr; }
  /// For those.
  virtual const Tokenizer& tokenizer() const = 0;
};

/// Text to be encoded. Refers to its arguments, which must outlive it.
class TextPieces : public DocumentPieces {
 public:
  static constexpr std::int64_t default_bytes = 4 << 20;

  TextPieces(const TextSource& source, const Tokenizer& tokenizer,
             std::int64_t piece_bytes = default_bytes);
  std::int64_t count() const override { return static_cast<std::int64_t>(pieces_.size()); }
  std::int64_t bytes(std::int64_t piece) const override;
  TextCounts make(std::int64_t piece,
                  const std::function<void(EncodedDocument&&)>& sink) const override;
  std::unique_ptr<TextSource> long_text(std::int64_t piece) const override;
  const Tokenizer& tokenizer() const override { return tokenizer_; }

 private:
  const TextSource& source_;
  const Tokenizer& tokenizer_;
  std::vector<TextPiece> pieces_;
  DocumentTextEncoder encoder_;
};

/// The pieces [first, last) of one rank of several: about as many bytes as every other's.
std::pair<std::int64_t, std::int64_t> pieces_of_rank(const DocumentPieces& pieces, int rank,
                                                     int ranks);

/// Makes pieces first, .., last - 1 on `threads` threads (at least 1) and hands their documents to
/// `sink`, on the calling thread, in their order; returns what was read. About 64 MB of input, or
/// one longer piece, is under way at a time. after_piece(piece) is called, on the calling thread,
/// when all of a piece has been handed out. Exceptions of all of them are passed on.
TextCounts encode_pieces(const DocumentPieces& pieces, std::int64_t first, std::int64_t last,
                         int threads, const std::function<void(EncodedDocument&&)>& sink,
                         const std::function<void(std::int64_t piece)>& after_piece);

}  // namespace scone
