#pragma once

#include <filesystem>
#include <string>

namespace scone {

/// Path of the file of a bundle that bundle.json names. A bundle may come from anybody: throws
/// InputError for a name that leads out of its folder, by itself or by a symbolic link, and for
/// what is there but is no regular file. A file that is missing is not an error here.
std::filesystem::path bundle_file(const std::filesystem::path& bundle, const std::string& name);

/// The whole text of bundle.json. Throws InputError where it cannot be read or is beyond any that a
/// bake writes.
std::string read_bundle_text(const std::filesystem::path& bundle);

}  // namespace scone
