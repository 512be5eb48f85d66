#include "launch/command.h"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "checkpoint/durable_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// Under its name only once it is whole and on the disk: that it is there says that the work is
/// done.
void write_result(const std::filesystem::path& path, const std::string& text) {
  const std::filesystem::path fresh = path.string() + ".new";
  try {
    write_text_durably(fresh, text);
    std::filesystem::rename(fresh, path);
    sync_published(path);
  } catch (const std::runtime_error& error) {
    throw InputError(fmt::format("--result {}: cannot be written ({}); give another path",
                                 path.string(), error.what()));
  }
}

}  // namespace

void CommandContext::print_result(const nlohmann::json& result) const {
  if (!is_root()) return;
  // A path need not be UTF-8: what is not is replaced.
  const std::string text =
      result.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  if (!result_file.empty()) write_result(result_file, text);
  if (!json) return;
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace scone
