#pragma once

#include <string>
#include <string_view>

namespace scone {

/// 16 hex digits of XXH3-64 over `bytes`: how tokenizer files are told apart.
std::string xxh3_hex(std::string_view bytes);

}  // namespace scone
