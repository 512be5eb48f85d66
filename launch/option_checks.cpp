#include "launch/option_checks.h"

#include <fmt/format.h>

#include <string>

namespace scone {

CLI::Validator at_least(std::int64_t least) {
  return CLI::Validator(
      [least](const std::string& text) {
        std::int64_t number = 0;
        return CLI::detail::lexical_cast(text, number) && number >= least
                   ? std::string()
                   : fmt::format("expected a whole number of at least {}, found {}", least, text);
      },
      fmt::format("at least {}", least));
}

}  // namespace scone
