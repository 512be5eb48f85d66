#include "checkpoint/table/bundle_file.h"

#include <algorithm>
#include <fstream>

#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kMostBundleText = 100'000'000;  // bytes; a bake's are a few thousand

/// A relative path that stays below where it begins, whatever the folders on it are.
bool stays_below(const fs::path& name) {
  return !name.empty() && name.is_relative() && name.has_filename() &&
         name.string().find('\0') == std::string::npos &&
         std::none_of(name.begin(), name.end(),
                      [](const fs::path& part) { return part == ".." || part == "."; });
}

}  // namespace

fs::path bundle_file(const fs::path& bundle, const std::string& name) {
  if (!stays_below(name)) {
    throw InputError((bundle / "bundle.json").string() +
                     ": expected the name of a file in the bundle's folder, found \"" +
                     name.substr(0, name.find('\0')) + "\"");
  }
  fs::path path = bundle / name;
  std::error_code error;
  const fs::path folder = fs::weakly_canonical(bundle, error);
  const fs::path place = error ? fs::path() : fs::weakly_canonical(path, error);
  if (error) throw InputError(path.string() + ": " + error.message());
  // The folder's own parts are all of the place's first ones.
  if (std::mismatch(folder.begin(), folder.end(), place.begin(), place.end()).first !=
      folder.end()) {
    throw InputError(path.string() + ": a link to " + place.string() +
                     ", outside of the bundle; copy the file in its place");
  }
  const fs::file_status status = fs::status(path, error);
  if (fs::exists(status) && !fs::is_regular_file(status))
    throw InputError(path.string() + ": expected a regular file");
  return path;
}

std::string read_bundle_text(const fs::path& bundle) {
  const fs::path path = bundle_file(bundle, "bundle.json");
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) {
    throw InputError(path.string() +
                     ": cannot be opened; expected a bundle's folder, as scone bake makes it");
  }
  if (bytes > kMostBundleText) {
    throw InputError(path.string() + ": expected at most " + std::to_string(kMostBundleText) +
                     " bytes, found " + std::to_string(bytes) + "; it is no bundle's description");
  }
  std::string text(static_cast<std::size_t>(bytes), '\0');
  file.read(text.data(), static_cast<std::streamsize>(bytes));
  if (!file) throw InputError(path.string() + ": cannot be read");
  return text;
}

}  // namespace scone
