#include "checkpoint/durable_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "checkpoint/file_checksum.h"
#include "data/json_integer.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const char* action, int error) {
  throw std::runtime_error(
      fmt::format("{}: cannot {}: {}", path.string(), action, std::strerror(error)));
}

}  // namespace

void sync_path(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(path, "be opened", errno);
  const int result = ::fsync(descriptor);
  const int error = errno;
  ::close(descriptor);
  if (result != 0) fail(path, "be synced to disk", error);
}

void write_text_durably(const fs::path& path, const std::string& text) {
  {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << text;
    file.close();
    if (!file) fail(path, "be written", errno);
  }
  sync_path(path);
}

void sync_published(const fs::path& target) {
  try {
    sync_path(target.has_parent_path() ? target.parent_path() : ".");
  } catch (const std::runtime_error& error) {
    throw NotSyncedError(
        fmt::format("{} is in its place, but a crash of the machine may undo that: {}",
                    target.string(), error.what()));
  }
}

void publish_folder(const fs::path& made, const fs::path& target, const fs::path& aside) {
  std::error_code error;
  const bool replaces = fs::exists(target);
  if (replaces) {
    fs::remove_all(aside);
    fs::rename(target, aside);
  }
  fs::rename(made, target, error);
  if (error) {
    std::error_code ignored;
    if (replaces) fs::rename(aside, target, ignored);
    throw std::runtime_error(fmt::format("{}: cannot be renamed to {}: {}", made.string(),
                                         target.string(), error.message()));
  }
  sync_published(target);
  if (replaces) fs::remove_all(aside, error);
}

void require_free_space(const fs::path& folder, std::int64_t needed) {
  const auto available = static_cast<std::int64_t>(
      std::min<std::uintmax_t>(fs::space(folder).available, std::uintmax_t{INT64_MAX}));
  if (available < needed) {
    throw std::runtime_error(
        fmt::format("{}: not enough space on its file system: {} bytes needed, {} bytes free; free "
                    "some or choose a folder on another disk",
                    folder.string(), needed, available));
  }
}

nlohmann::json read_json_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw InputError(fmt::format("{}: cannot be opened", path.string()));
  try {
    return nlohmann::json::parse(file);
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: not valid JSON: {}", path.string(), error.what()));
  }
}

nlohmann::json describe_files(const fs::path& folder, const std::vector<std::string>& names) {
  nlohmann::json files = nlohmann::json::object();
  for (const std::string& name : names) {
    files[name] = {{"bytes", file_bytes(folder / name)}, {"xxh3", file_checksum(folder / name)}};
  }
  return files;
}

namespace {

/// What is wrong with one file of the list; empty: nothing.
std::string file_problem(const fs::path& path, const nlohmann::json& file, bool checksums) {
  try {
    const auto expected = json_integer(file.at("bytes"));
    const std::int64_t found = file_bytes(path);
    if (found != expected) {
      return fmt::format("{}: expected {} bytes, found {}{}", path.string(), expected, found,
                         found < expected ? " (truncated)" : "");
    }
    if (!checksums) return "";
    const auto expected_checksum = file.at("xxh3").get<std::string>();
    const std::string checksum = file_checksum(path);
    if (checksum != expected_checksum) {
      return fmt::format("{}: expected checksum {}, found {} (content changed)", path.string(),
                         expected_checksum, checksum);
    }
    return "";
  } catch (const InputError& error) {
    return error.what();
  } catch (const nlohmann::json::exception& error) {
    return fmt::format("{}: its entry in \"files\": {}", path.string(), error.what());
  }
}

}  // namespace

std::vector<std::string> file_problems(const fs::path& folder, const nlohmann::json& files,
                                       bool checksums) {
  if (!files.is_object() || files.empty()) {
    return {fmt::format("{}: the list \"files\" is missing or empty", folder.string())};
  }
  std::vector<std::pair<fs::path, const nlohmann::json*>> all;
  for (const auto& [name, file] : files.items()) all.emplace_back(folder / name, &file);
  std::vector<std::string> problems(all.size());
#pragma omp parallel for schedule(dynamic)
  for (std::size_t i = 0; i < all.size(); ++i) {
    problems[i] = file_problem(all[i].first, *all[i].second, checksums);
  }
  std::erase(problems, "");
  return problems;
}

}  // namespace scone
