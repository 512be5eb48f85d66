#include "launch/command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>

#include "checkpoint/durable_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// Under its name only once it is whole and on the disk: that it is there says that the work is
/// done. Of a link the file that it leads to.
void write_result(const std::filesystem::path& path, const std::string& text) {
  try {
    const std::filesystem::path file = std::filesystem::weakly_canonical(path);
    const std::filesystem::path fresh = file.string() + ".new";
    if (file.has_parent_path()) std::filesystem::create_directories(file.parent_path());
    write_text_durably(fresh, text);
    std::filesystem::rename(fresh, file);
    sync_published(file);
  } catch (const std::runtime_error& error) {
    throw InputError(fmt::format("--result {}: cannot be written ({}); give another path",
                                 path.string(), error.what()));
  }
}

}  // namespace

void CommandContext::check_result_file() const {
  if (result_file.empty()) return;
  const std::filesystem::path path = result_file;
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  // A result takes the file's place: of /dev/null too, where root asks for it.
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw InputError(fmt::format("--result {}: expected the name of a file, found {}", result_file,
                                 std::filesystem::is_directory(status)
                                     ? "a folder; give another path"
                                     : "a device or a pipe; give another path, or print the "
                                       "result with --json"));
  }
  // A folder that is not there yet may be the command's own.
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (std::filesystem::exists(folder, error) && ::access(folder.c_str(), W_OK) != 0) {
    throw InputError(
        fmt::format("--result {}: the folder {} cannot be written to; give another path",
                    result_file, folder.string()));
  }
}

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
