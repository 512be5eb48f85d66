#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace scone {

/// Byte-level BPE as a Hugging Face tokenizer.json describes it: GPT-2's pre-tokenisation
/// (ByteLevel), or a Sequence of Split and Digits that ends in ByteLevel (Llama 3, GPT-4 and the
/// like). The text is cut into words by the regular expressions, one after another, each word into
/// bytes, and the bytes are merged: the merge of lowest rank first, the leftmost of equals. Text
/// that no expression matches, and bytes that are no UTF-8, are words of their own, so decoding
/// always gives the text back. Words met before are found in a bounded cache, which threads share.
class ByteBpeTokenizer : public Tokenizer {
 public:
  /// json: the whole file's bytes. Throws InputError that names the key: not JSON, another kind of
  /// model, normaliser or pre-tokeniser, a byte or a merge's result missing in the vocabulary.
  ByteBpeTokenizer(std::filesystem::path file, std::string_view json);
  ~ByteBpeTokenizer() override;

  std::int64_t vocabulary_size() const override;
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override;
  std::string token_bytes(std::int32_t id) const override;
  std::int32_t end_of_document() const override;
  std::string fingerprint() const override;
  std::string description() const override;
  std::filesystem::path file() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
