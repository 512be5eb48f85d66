#pragma once

#include <chrono>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "data/tokenizer.h"
#include "data/utf8.h"

namespace scone {

/// One token a byte: 0 ends a document, 1..256 are single bytes. Only well-formed text may be
/// given to encode().
class CharacterTokenizer : public Tokenizer {
 public:
  explicit CharacterTokenizer(bool has_high_bytes = true) : has_high_bytes_(has_high_bytes) {}
  std::int64_t vocabulary_size() const override { return has_high_bytes_ ? 257 : 129; }
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override {
    if (find_ill_formed_utf8(text).offset != std::string_view::npos) {
      throw std::logic_error("the tokenizer was given ill-formed text");
    }
    if (text.find("slow") == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    if (text.find("throw") == 0) throw std::runtime_error("from the tokenizer");
    for (const char byte : text) ids.push_back(1 + static_cast<unsigned char>(byte));
  }
  std::string token_bytes(std::int32_t id) const override {
    return id == 0 ? "" : std::string(1, static_cast<char>(id - 1));
  }
  std::int32_t end_of_document() const override { return 0; }
  std::string fingerprint() const override { return "0"; }
  std::string description() const override { return "characters"; }
  std::filesystem::path file() const override { return "characters.json"; }

 private:
  bool has_high_bytes_;
};

}  // namespace scone
