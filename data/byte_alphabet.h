#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace scone {

/// GPT-2's way of writing bytes as printable characters: bytes 33-126, 161-172 and 174-255 stand
/// for the Unicode characters of the same number, the other 68 for those from 256 on, in order.
std::string byte_to_character(unsigned char byte);

/// The bytes that a token written in that alphabet stands for; nothing where it holds any other
/// character.
std::optional<std::string> bytes_of_characters(std::string_view token);

}  // namespace scone
