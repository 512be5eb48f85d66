#include "checkpoint/bundle_target.h"

#include <fmt/format.h>

#include "checkpoint/bundle.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

fs::path folder_path(const fs::path& path) {
  if (path.empty()) throw InputError("--out: expected the name of a folder, found an empty one");
  const fs::path normal = fs::absolute(path).lexically_normal();
  return normal.filename().empty() ? normal.parent_path() : normal;
}

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

}  // namespace scone
