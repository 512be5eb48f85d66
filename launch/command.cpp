#include "launch/command.h"

#include <cstdio>
#include <string>

namespace scone {

void CommandContext::print_result(const nlohmann::json& result) const {
  if (!json || !is_root()) return;
  // A path need not be UTF-8: what is not is replaced.
  const std::string text =
      result.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace scone
