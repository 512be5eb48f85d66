#include "data/size_suffix.h"

#include <fmt/format.h>

#include <limits>
#include <string>

#include "parallel/error.h"

namespace scone {
namespace {

[[noreturn]] void fail(std::string_view text, const std::string& found) {
  throw InputError(
      fmt::format("size '{}': expected a whole number, with K, M, G, T (1000s) or Ki, Mi, Gi, Ti "
                  "(1024s), such as 512K; found {}",
                  text, found));
}

__extension__ using Wide = unsigned __int128;

/// The suffix's factor; 0 for a suffix that is none.
std::uint64_t factor_of(std::string_view suffix) {
  if (suffix.empty()) return 1;
  constexpr std::string_view letters = "KMGT";
  const std::size_t power = letters.find(suffix[0] == 'k' ? 'K' : suffix[0]);
  if (power == std::string_view::npos) return 0;
  const bool binary = suffix.size() == 2 && suffix[1] == 'i';
  if (suffix.size() > 1 && !binary) return 0;
  std::uint64_t factor = 1;
  for (std::size_t i = 0; i <= power; ++i) factor *= binary ? 1024U : 1000U;
  return factor;
}

}  // namespace

std::int64_t parse_size(std::string_view text) {
  constexpr std::uint64_t largest = std::numeric_limits<std::int64_t>::max();
  Wide digits = 0;
  Wide divisor = 1;
  bool any_digit = false;
  bool fraction = false;
  std::size_t i = 0;
  for (; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '.' && !fraction && any_digit) {
      fraction = true;
    } else if (c >= '0' && c <= '9') {
      any_digit = true;
      digits = digits * 10U + static_cast<unsigned>(c - '0');
      if (fraction) divisor *= 10U;
      if (digits > largest || divisor > largest) fail(text, "too many digits");
    } else {
      break;
    }
  }
  if (!any_digit) fail(text, "no digits");
  if (text[i - 1] == '.') fail(text, "no digits after the point");
  const std::uint64_t factor = factor_of(text.substr(i));
  if (factor == 0) fail(text, fmt::format("the suffix '{}'", text.substr(i)));
  const Wide product = digits * factor;
  if (product % divisor != 0) fail(text, "a fraction of one");
  if (product / divisor > largest) fail(text, "a number beyond 63 bits");
  return static_cast<std::int64_t>(product / divisor);
}

std::int64_t parse_size_option(std::string_view option, std::string_view text) {
  try {
    return parse_size(text);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", option, error.what()));
  }
}

}  // namespace scone
