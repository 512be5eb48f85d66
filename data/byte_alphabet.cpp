#include "data/byte_alphabet.h"

#include <array>
#include <cstddef>

namespace scone {
namespace {

struct Alphabet {
  std::array<int, 256> character_of_byte{};
  std::array<int, 512> byte_of_character{};
  Alphabet() {
    byte_of_character.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      const int character = printable ? byte : next++;
      character_of_byte[static_cast<std::size_t>(byte)] = character;
      byte_of_character[static_cast<std::size_t>(character)] = byte;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

std::string byte_to_character(unsigned char byte) {
  const int character = alphabet().character_of_byte[byte];
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xC0 | (character >> 6)), static_cast<char>(0x80 | (character & 0x3F))};
}

std::optional<std::string> bytes_of_characters(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (std::size_t i = 0; i < token.size();) {
    const auto lead = static_cast<unsigned char>(token[i]);
    std::size_t character = lead;
    std::size_t length = 1;
    if (lead >= 0x80) {  // The alphabet's characters have one or two bytes.
      if ((lead & 0xE0) != 0xC0 || i + 1 >= token.size()) return std::nullopt;
      character = static_cast<std::size_t>((lead & 0x1F) << 6) |
                  (static_cast<unsigned char>(token[i + 1]) & 0x3F);
      length = 2;
    }
    if (character >= alphabet().byte_of_character.size()) return std::nullopt;
    const int byte = alphabet().byte_of_character[character];
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
    i += length;
  }
  return bytes;
}

}  // namespace scone
