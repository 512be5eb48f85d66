#include "checkpoint/bundle_target.h"

#include <fmt/format.h>

#include <fstream>
#include <system_error>

#include "checkpoint/bake_journal.h"
#include "checkpoint/bundle.h"
#include "checkpoint/durable_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

fs::path folder_path(const fs::path& path) {
  if (path.empty()) throw InputError("--out: expected the name of a folder, found an empty one");
  const fs::path normal = fs::absolute(path).lexically_normal();
  return normal.filename().empty() ? normal.parent_path() : normal;
}

constexpr const char* kMark = ".unfinished";

void write_mark(const fs::path& folder) { std::ofstream(folder / kMark).put('\n'); }

fs::path with_suffix(fs::path path, const char* suffix) {
  path += suffix;
  return path;
}

}  // namespace

BundleTarget::BundleTarget(const fs::path& out)
    : bundle(folder_path(out)),
      temporary(with_suffix(bundle, ".tmp")),
      aside(with_suffix(bundle, ".old.tmp")) {}

void BundleTarget::check(bool overwrite) const {
  if (!fs::exists(bundle)) return;
  if (!is_bundle(bundle) && !(fs::is_directory(bundle) && fs::is_empty(bundle))) {
    throw InputError(fmt::format(
        "{}: exists and is no bundle, so it is not replaced; give another --out", bundle.string()));
  }
  if (!overwrite) {
    throw InputError(fmt::format(
        "{}: exists already; give another --out, or --overwrite to replace it", bundle.string()));
  }
}

void BundleTarget::publish() const { publish_unfinished_folder(temporary, bundle, aside); }

bool is_unfinished_folder(const fs::path& folder) {
  std::error_code error;
  return fs::exists(folder / kMark, error);
}

void make_unfinished_folder(const fs::path& folder) {
  std::error_code error;
  if (fs::exists(folder, error) && !is_unfinished_folder(folder) && !BakeJournal::exists(folder) &&
      !(fs::is_directory(folder, error) && fs::is_empty(folder, error)))
    throw InputError(
        fmt::format("{}: exists, and is nothing that scone left unfinished; move it away, or give "
                    "another --out",
                    folder.string()));
  fs::remove_all(folder, error);
  if (!error) fs::create_directories(folder, error);
  if (error) {
    throw InputError(fmt::format("{}: cannot be made: {}; give another --out", folder.string(),
                                 error.message()));
  }
  write_mark(folder);
}

void publish_unfinished_folder(const fs::path& folder, const fs::path& target,
                               const fs::path& aside) {
  std::error_code ignored;
  try {
    publish_folder(folder, target, aside);
  } catch (const NotSyncedError&) {
    fs::remove(target / kMark, ignored);
    throw;
  }
  fs::remove(target / kMark, ignored);
}

}  // namespace scone
