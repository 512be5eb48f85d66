#pragma once

#include <filesystem>

namespace scone {

/// Where a bundle is made: in the folder "<out>.tmp", which becomes `bundle` when it is complete.
struct BundleTarget {
  /// Throws InputError for an empty name.
  explicit BundleTarget(const std::filesystem::path& out);
  std::filesystem::path bundle, temporary;
  std::filesystem::path aside;  // what is replaced, for a moment

  /// Throws InputError where the bundle exists, unless `overwrite`; never lets anything be replaced
  /// but a bundle or an empty folder.
  void check(bool overwrite) const;
  /// Puts the temporary folder in the bundle's place. Throws as publish_folder.
  void publish() const;
};

/// Makes `folder` anew. Throws InputError where it cannot be made.
void make_empty_folder(const std::filesystem::path& folder);

}  // namespace scone
