#include "trainer/tensorboard/crc32c.h"

#include <array>

namespace scone {
namespace {

constexpr std::uint32_t reversed_polynomial = 0x82F63B78;

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit)
      remainder = (remainder >> 1) ^ ((remainder & 1U) != 0 ? reversed_polynomial : 0U);
    table[byte] = remainder;
  }
  return table;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr auto table = make_table();
  std::uint32_t remainder = 0xFFFFFFFF;
  for (const char c : bytes)
    remainder = (remainder >> 8) ^ table[(remainder ^ static_cast<unsigned char>(c)) & 0xFFU];
  return ~remainder;
}

}  // namespace scone
