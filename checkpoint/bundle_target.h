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

/// Makes an empty folder, marked as unfinished, in place of one that is so marked. Throws
/// InputError where it cannot be made, or something else stands there.
void make_unfinished_folder(const std::filesystem::path& folder);
/// Whether it is there and so marked.
bool is_unfinished_folder(const std::filesystem::path& folder);
/// Puts the folder in the place of `target`, as publish_folder does, and takes its mark out then.
void publish_unfinished_folder(const std::filesystem::path& folder,
                               const std::filesystem::path& target,
                               const std::filesystem::path& aside);

}  // namespace scone
