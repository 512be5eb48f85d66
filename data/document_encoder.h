#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace scone {

struct EncodedDocument {
  std::vector<std::int32_t> tokens;  // end_of_document last, where the tokenizer has one
  std::int64_t text_bytes = 0;
  std::uint64_t text_hash = 0;  // XXH3-64 of the text
};

/// Encodes documents on `threads` threads (at least 1) and hands them to `sink` in their order.
/// next_document and sink run on the calling thread; about 64 MB of text, or one longer document,
/// is held. Ill-formed UTF-8 is encoded with the tokenizer's tokens of single bytes, so that
/// decoding gives the same bytes; throws InputError where the tokenizer has none. Exceptions of
/// next_document, sink and the tokenizer are passed on.
void encode_documents(const Tokenizer& tokenizer, int threads,
                      const std::function<bool(std::string&)>& next_document,
                      const std::function<void(EncodedDocument&&)>& sink);

/// Divides documents, as they come, between training and validation by the hash of their text, so
/// that equal texts stay together and the division does not depend on the order. Both sides get at
/// least one document where the fraction is over 0 and there are two or more: while one side is
/// empty, the other's document that is nearest to it is held back.
class ValidationSplit {
 public:
  enum class Side { train, validation };
  using Sink = std::function<void(Side, const EncodedDocument&)>;

  /// fraction: of the documents that go to validation, 0 <= fraction < 1. Throws InputError
  /// otherwise.
  ValidationSplit(double fraction, Sink sink);
  void add(EncodedDocument&& document);
  /// Hands out the document held back, if any.
  void finish();

 private:
  double fraction_;
  Sink sink_;
  std::int64_t documents_ = 0;
  bool both_ = false;     // both sides have a document, nothing is held back
  bool holding_ = false;  // held_ is valid, and all documents so far belong to held_side_
  Side held_side_ = Side::train;
  EncodedDocument held_;
};

}  // namespace scone
