#include "checkpoint/unfinished_folder.h"

#include <fmt/format.h>

#include <fstream>
#include <system_error>

#include "checkpoint/bake_journal.h"
#include "checkpoint/durable_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMark = ".unfinished";

bool is_ours(const fs::path& folder) {
  std::error_code error;
  return fs::exists(folder / kMark, error) || BakeJournal::exists(folder) ||
         (fs::is_directory(folder, error) && fs::is_empty(folder, error));
}

}  // namespace

UnfinishedFolder::UnfinishedFolder(fs::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  if (fs::exists(folder_, error) && !is_ours(folder_))
    throw InputError(
        fmt::format("{}: exists, and is nothing that scone left unfinished; move it away, or give "
                    "another --out",
                    folder_.string()));
  fs::create_directories(folder_, error);
  if (error)
    throw InputError(fmt::format("{}: cannot be made: {}; give another --out", folder_.string(),
                                 error.message()));
  lock_.emplace(folder_ / kMark);
  if (lock_->outcome() == FileLock::Outcome::held_by_another)
    throw InputError(
        fmt::format("{}: another scone makes it now; wait for its end, or give another --out",
                    folder_.string()));
  std::ofstream(folder_ / kMark, std::ios::trunc).put('\n');
}

void UnfinishedFolder::clear() const {
  for (const auto& entry : fs::directory_iterator(folder_))
    if (entry.path().filename() != kMark) fs::remove_all(entry.path());
}

void UnfinishedFolder::remove() const {
  std::error_code ignored;
  try {
    clear();  // the mark last: until then the folder is ours
  } catch (const fs::filesystem_error&) {
  }
  fs::remove_all(folder_, ignored);
}

void UnfinishedFolder::publish(const fs::path& target, const fs::path& aside) const {
  std::error_code ignored;
  try {
    publish_folder(folder_, target, aside);
  } catch (const NotSyncedError&) {
    fs::remove(target / kMark, ignored);
    throw;
  }
  fs::remove(target / kMark, ignored);
}

}  // namespace scone
