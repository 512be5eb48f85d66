#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace scone {

/// What is done with bytes that are not UTF-8.
enum class InvalidUtf8 { replace, keep, error };

/// Byte offset of the first ill-formed sequence at or after `from`, and its length: the longest
/// start of a well-formed sequence, or one byte (Unicode 15, section 3.9, "maximal subparts").
/// Overlong forms, surrogates and code points over U+10FFFF are ill-formed.
struct IllFormed {
  std::size_t offset = 0;  // std::string_view::npos: none
  std::size_t length = 0;
};
IllFormed find_ill_formed_utf8(std::string_view text, std::size_t from = 0);

/// Puts U+FFFD in the place of each ill-formed sequence; returns how many there were.
std::size_t replace_ill_formed_utf8(std::string& text);

/// How many ill-formed sequences `text` has.
std::size_t count_ill_formed_utf8(std::string_view text);

}  // namespace scone
