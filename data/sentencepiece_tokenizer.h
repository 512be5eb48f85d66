#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace scone {

/// A SentencePiece model of any kind. Long texts are encoded in pieces, cut where that cannot
/// change the ids. A model that adds no space in front and has byte pieces (as train_tokenizer
/// makes) is lossless: its own word mark U+2581 in the text, and bytes that are no UTF-8, become
/// byte pieces.
class SentencePieceTokenizer : public Tokenizer {
 public:
  /// model: the whole file's bytes. Throws InputError where it is none.
  SentencePieceTokenizer(std::filesystem::path file, std::string_view model);
  ~SentencePieceTokenizer() override;

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
