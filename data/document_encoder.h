#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/tokenizer.h"

namespace scone {

struct EncodedDocument {
  std::vector<std::int32_t> tokens;  // end_of_document last, where the tokenizer has one
  std::int64_t text_bytes = 0;
  std::uint64_t text_hash = 0;  // XXH3-64 of the text
};

/// Encodes the text of documents, one at a time; safe to use from several threads. Ill-formed UTF-8
/// is encoded with the tokenizer's tokens of single bytes, so that decoding gives the same bytes.
class DocumentTextEncoder {
 public:
  /// The tokenizer outlives this.
  explicit DocumentTextEncoder(const Tokenizer& tokenizer);
  /// Throws InputError where a byte has no token.
  EncodedDocument encode(std::string_view text) const;

 private:
  void encode_text(std::string_view text, std::vector<std::int32_t>& ids) const;
  std::int32_t byte_token(unsigned char byte) const;

  const Tokenizer& tokenizer_;
  mutable std::once_flag once_;
  mutable std::array<std::int32_t, 256> byte_tokens_{};
};

/// Encodes documents on `threads` threads (at least 1) and hands them to `sink` in their order.
/// next_document and sink run on the calling thread; about 64 MB of text, or one longer document,
/// is held. Ill-formed UTF-8 is encoded with the tokenizer's tokens of single bytes, so that
/// decoding gives the same bytes; throws InputError where the tokenizer has none. Exceptions of
/// next_document, sink and the tokenizer are passed on.
void encode_documents(const Tokenizer& tokenizer, int threads,
                      const std::function<bool(std::string&)>& next_document,
                      const std::function<void(EncodedDocument&&)>& sink);

/// Throws InputError unless 0 <= fraction < 1.
void check_validation_fraction(double fraction);

/// Divides documents, as they come, between training and validation by the hash of their text, so
/// that equal texts stay together and the division does not depend on the order. Both sides get at
/// least one document where the fraction is over 0 and there are two or more: while one side is
/// empty, the other's document that is nearest to it is held back.
template <class Document>  // with a text_hash, as EncodedDocument
class DocumentSplit {
 public:
  enum class Side { train, validation };
  using Sink = std::function<void(Side, const Document&)>;

  /// fraction: of the documents that go to validation, 0 <= fraction < 1. Throws InputError
  /// otherwise.
  DocumentSplit(double fraction, Sink sink) : fraction_(fraction), sink_(std::move(sink)) {
    check_validation_fraction(fraction);
  }
  void add(Document&& document);
  /// Hands out the document held back, if any.
  void finish();

 private:
  double fraction_;
  Sink sink_;
  std::int64_t documents_ = 0;
  bool both_ = false;     // both sides have a document, nothing is held back
  bool holding_ = false;  // held_ is valid, and all documents so far belong to held_side_
  Side held_side_ = Side::train;
  Document held_;
};
using ValidationSplit = DocumentSplit<EncodedDocument>;

template <class Document>
void DocumentSplit<Document>::add(Document&& document) {
  ++documents_;
  constexpr double hashes = 18446744073709551616.0;  // 2^64
  const Side side =
      static_cast<double>(document.text_hash) < fraction_ * hashes ? Side::validation : Side::train;
  if (both_ || fraction_ == 0) {
    sink_(side, document);
  } else if (!holding_) {
    held_ = std::move(document);
    held_side_ = side;
    holding_ = true;
  } else if (side != held_side_) {
    both_ = true;
    finish();
    sink_(side, document);
  } else {
    // Validation has the low hashes, so the nearest to it is the lowest, and the nearest to
    // training the highest.
    const bool nearer = side == Side::train ? document.text_hash < held_.text_hash
                                            : document.text_hash > held_.text_hash;
    if (nearer) std::swap(held_, document);
    sink_(side, document);
  }
}

template <class Document>
void DocumentSplit<Document>::finish() {
  if (!holding_) return;
  holding_ = false;
  Side side = held_side_;
  if (!both_) {
    // All documents belong to one side. A single one is for training.
    if (documents_ == 1) {
      side = Side::train;
    } else {
      side = held_side_ == Side::train ? Side::validation : Side::train;
    }
  }
  sink_(side, held_);
  held_ = {};
}

}  // namespace scone
