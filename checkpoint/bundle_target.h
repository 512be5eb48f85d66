#pragma once

#include <filesystem>

namespace scone {

/// Where a bundle is made: in the UnfinishedFolder "<out>.tmp", which becomes `bundle` when it is
/// complete.
struct BundleTarget {
  /// Throws InputError for an empty name.
  explicit BundleTarget(const std::filesystem::path& out);
  std::filesystem::path bundle, temporary;
  std::filesystem::path aside;  // what is replaced, for a moment

  /// Throws InputError where the bundle exists, unless `overwrite`; never lets anything be replaced
  /// but a bundle or an empty folder.
  void check(bool overwrite) const;
};

}  // namespace scone
