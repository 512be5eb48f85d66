#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>

#include "data/mapped_file.h"

namespace scone {

/// How a token file stores its ids, little-endian.
enum class TokenWidth { uint8, int16, uint16, int32, uint32, int64 };

constexpr std::int64_t bytes_of(TokenWidth width) {
  switch (width) {
    case TokenWidth::uint8:
      return 1;
    case TokenWidth::int16:
    case TokenWidth::uint16:
      return 2;
    case TokenWidth::int32:
    case TokenWidth::uint32:
      return 4;
    case TokenWidth::int64:
      break;
  }
  return 8;
}

/// The id at `index` of an array that need not be aligned.
inline std::int64_t load_token(const std::byte* tokens, TokenWidth width, std::int64_t index) {
  const auto load = [&](auto value) {
    std::memcpy(&value, tokens + index * static_cast<std::int64_t>(sizeof value), sizeof value);
    return static_cast<std::int64_t>(value);
  };
  switch (width) {
    case TokenWidth::uint8:
      return load(std::uint8_t{});
    case TokenWidth::int16:
      return load(std::int16_t{});
    case TokenWidth::uint16:
      return load(std::uint16_t{});
    case TokenWidth::int32:
      return load(std::int32_t{});
    case TokenWidth::uint32:
      return load(std::uint32_t{});
    case TokenWidth::int64:
      break;
  }
  return load(std::int64_t{});
}

/// The .idx beside a .bin of Megatron-LM's indexed datasets, mapped: "MMIDIDX", two zero bytes;
/// version 1 (uint64); code of the tokens' type (uint8); sequences S and document marks D (uint64);
/// S lengths in tokens (int32), S offsets in bytes (int64), D marks (int64: sequence with which a
/// document begins, the last one S); S modes (int8) where data are multimodal, not read.
class MegatronIndex {
 public:
  struct Document {
    std::int64_t first = 0, count = 0;  // tokens of the .bin
  };

  /// bin_bytes: size of the .bin. Throws InputError that says what does not fit: the header, the
  /// file's size, sequences that do not follow one another, the end of the last one and the .bin's,
  /// document marks.
  MegatronIndex(const std::filesystem::path& path, const std::filesystem::path& bin,
                std::int64_t bin_bytes);

  TokenWidth width() const { return width_; }
  std::int64_t documents() const { return marks_ - 1; }
  Document document(std::int64_t index) const;

 private:
  std::int64_t length(std::int64_t sequence) const;
  std::int64_t offset(std::int64_t sequence) const;
  std::int64_t mark(std::int64_t index) const;
  void read_header(const std::filesystem::path& path);
  void check_sequences(const std::filesystem::path& path, const std::filesystem::path& bin,
                       std::int64_t bin_bytes) const;
  void check_marks(const std::filesystem::path& path) const;

  MappedFile file_;
  TokenWidth width_ = TokenWidth::uint16;
  std::int64_t sequences_ = 0, marks_ = 0;
  std::int64_t bin_tokens_ = 0;
};

}  // namespace scone
