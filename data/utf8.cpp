#include "data/utf8.h"

#include <cstdint>
#include <cstring>
#include <utility>

namespace scone {
namespace {

struct Sequence {
  std::size_t length;  // of the well-formed sequence, or of the ill-formed one
  bool well_formed;
};

/// The sequence that starts at `begin`; begin < end.
Sequence sequence_at(const unsigned char* begin, const unsigned char* end) {
  const unsigned char lead = *begin;
  if (lead < 0x80) return {1, true};
  std::size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;  // of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // overlong below
    if (lead == 0xED) high = 0x9F;  // surrogates above
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;   // overlong below
    if (lead == 0xF4) high = 0x8F;  // over U+10FFFF above
  } else {
    return {1, false};
  }
  for (std::size_t i = 1; i < length; ++i) {
    if (begin + i == end || begin[i] < low || begin[i] > high) return {i, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true};
}

}  // namespace

IllFormed find_ill_formed_utf8(std::string_view text, std::size_t from) {
  const auto* const begin = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = begin + text.size();
  for (const auto* at = begin + from; at < end;) {
    if (end - at >= 8) {  // eight ASCII bytes at once
      std::uint64_t word;
      std::memcpy(&word, at, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const Sequence sequence = sequence_at(at, end);
    if (!sequence.well_formed) return {static_cast<std::size_t>(at - begin), sequence.length};
    at += sequence.length;
  }
  return {std::string_view::npos, 0};
}

std::size_t replace_ill_formed_utf8(std::string& text) {
  IllFormed found = find_ill_formed_utf8(text);
  if (found.offset == std::string_view::npos) return 0;
  std::string result;
  result.reserve(text.size() + 16);
  std::size_t count = 0, copied = 0;
  while (found.offset != std::string_view::npos) {
    result.append(text, copied, found.offset - copied);
    result += "\xEF\xBF\xBD";
    copied = found.offset + found.length;
    ++count;
    found = find_ill_formed_utf8(text, copied);
  }
  result.append(text, copied);
  text = std::move(result);
  return count;
}

std::size_t count_ill_formed_utf8(std::string_view text) {
  std::size_t count = 0;
  for (IllFormed found = find_ill_formed_utf8(text); found.offset != std::string_view::npos;
       found = find_ill_formed_utf8(text, found.offset + found.length)) {
    ++count;
  }
  return count;
}

}  // namespace scone
