#pragma once

#include <cstdint>
#include <string_view>

namespace scone {

/// CRC-32C (Castagnoli) of `bytes`.
std::uint32_t crc32c(std::string_view bytes);

}  // namespace scone
