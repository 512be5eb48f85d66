#include "checkpoint/checkpoint_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>

#include <algorithm>
#include <system_error>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/durable_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStepPrefix = "step-";
constexpr const char* kTemporary = ".tmp";
// A checkpoint that another of the same step is replacing, and one that is being removed.
constexpr const char* kAside = ".aside.tmp";
constexpr const char* kRemoved = ".removed.tmp";

std::string without_suffix(const std::string& name, const std::string& suffix) {
  return name.ends_with(suffix) ? name.substr(0, name.size() - suffix.size()) : "";
}

/// Renamed first, so that no half of it is ever taken for a checkpoint.
void remove_checkpoint(const fs::path& path) {
  const fs::path removed = path.string() + kRemoved;
  fs::remove_all(removed);
  fs::rename(path, removed);
  fs::remove_all(removed);
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
  return fmt::format("{}{:08d}", kStepPrefix, step);
}

bool is_checkpoint_name(const std::string& name) {
  const std::string prefix = kStepPrefix;
  return name.starts_with(prefix) && name.size() > prefix.size() &&
         name.size() <= prefix.size() + 18 &&
         std::all_of(name.begin() + static_cast<std::ptrdiff_t>(prefix.size()), name.end(),
                     [](char c) { return c >= '0' && c <= '9'; });
}

std::map<std::int64_t, fs::path> list_checkpoints(const fs::path& checkpoints) {
  std::map<std::int64_t, fs::path> found, aside;
  std::error_code error;
  const auto step_of = [](const std::string& name) {
    return std::stoll(name.substr(std::string(kStepPrefix).size()));
  };
  auto entries = fs::directory_iterator(checkpoints, error);
  // A folder that is there and cannot be read is not one without checkpoints.
  if (error && error != std::errc::no_such_file_or_directory &&
      error != std::errc::not_a_directory) {
    throw InputError(fmt::format("{}: cannot be read: {}", checkpoints.string(), error.message()));
  }
  for (const auto& entry : entries) {
    if (!entry.is_directory(error) && !error) continue;  // else whoever reads it finds out why
    const std::string name = entry.path().filename().string();
    const std::string set_aside = without_suffix(name, kAside);
    if (is_checkpoint_name(name)) found[step_of(name)] = entry.path();
    if (is_checkpoint_name(set_aside)) aside[step_of(set_aside)] = entry.path();
  }
  found.merge(aside);  // adds those whose step is not there
  return found;
}

fs::path temporary_folder(const fs::path& checkpoints, std::int64_t step) {
  return checkpoints / (checkpoint_name(step) + kTemporary);
}

void prepare_checkpoint_folder(const fs::path& checkpoints, std::int64_t step) {
  fs::create_directories(checkpoints);
  for (const auto& [old_step, path] : list_checkpoints(checkpoints)) {
    if (path.filename().string().ends_with(kAside)) {
      fs::rename(path, checkpoints / checkpoint_name(old_step));
    }
  }
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kStepPrefix) && name.ends_with(kTemporary)) stale.push_back(entry.path());
  }
  std::error_code ignored;  // an NFS keeps what a process still has open; the next save tries again
  for (const fs::path& path : stale) fs::remove_all(path, ignored);
  fs::create_directory(temporary_folder(checkpoints, step));
}

fs::path publish_checkpoint(const fs::path& checkpoints, std::int64_t step) {
  const fs::path made = temporary_folder(checkpoints, step);
  const fs::path target = checkpoints / checkpoint_name(step);
  // Where the file system can, an old one of the same step is exchanged at once.
  if (fs::exists(target) &&
      ::renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    sync_published(target);
    std::error_code ignored;  // the next save tries again
    fs::remove_all(made, ignored);
  } else {
    publish_folder(made, target, target.string() + kAside);
  }
  return target;
}

bool is_permanent(std::int64_t step, std::int64_t permanent_every) {
  return permanent_every >= 1 && step % permanent_every == 0;
}

void remove_old_checkpoints(const fs::path& checkpoints, std::int64_t step, int keep,
                            std::int64_t permanent_every) {
  if (keep < 1) return;
  const auto all = list_checkpoints(checkpoints);
  int newer = 0;
  for (auto entry = all.rbegin(); entry != all.rend(); ++entry) {
    if (entry->first > step) continue;
    if (newer >= keep) {
      if (!is_permanent(entry->first, permanent_every)) remove_checkpoint(entry->second);
    } else if (checkpoint_problems(entry->second, /*checksums=*/false).empty()) {
      ++newer;
    }
  }
}

}  // namespace scone
