#pragma once

#include <cstdint>
#include <string_view>

namespace scone {

/// A non-negative whole number with an optional suffix: K, M, G, T (powers of 1000) or Ki, Mi, Gi,
/// Ti (powers of 1024). A decimal fraction is taken where the product is whole: "1.5M". Throws
/// InputError that quotes the text.
std::int64_t parse_size(std::string_view text);
/// The value of an option, which InputError names too.
std::int64_t parse_size_option(std::string_view option, std::string_view text);

}  // namespace scone
