#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace scone {

/// Makes what was written to a file, or a folder's entries, last through a crash of the machine
/// (fsync). Throws std::runtime_error naming the path.
void sync_path(const std::filesystem::path& path);

/// Writes a text file and syncs it. Throws std::runtime_error naming the path.
void write_text_durably(const std::filesystem::path& path, const std::string& text);

/// What was published is in its place, but its parent could not be synced: a crash of the machine
/// may undo that.
class NotSyncedError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Syncs the parent of what has just been renamed to `target`. Throws NotSyncedError naming both.
void sync_published(const std::filesystem::path& target);

/// Puts the finished folder `made` in the place of `target` (which may exist; it is set aside as
/// `aside` first and removed last) and syncs their parent. Throws std::runtime_error where `target`
/// is as it was, NotSyncedError where it is the new one; what was set aside stays then.
void publish_folder(const std::filesystem::path& made, const std::filesystem::path& target,
                    const std::filesystem::path& aside);

/// Throws std::runtime_error, with the needed and the free bytes, where the file system of
/// `folder`, which must exist, has fewer than `needed` bytes free for this user.
void require_free_space(const std::filesystem::path& folder, std::int64_t needed);

/// Parses a JSON file. Throws InputError with the file and the place of the error.
nlohmann::json read_json_file(const std::filesystem::path& path);

/// {name: {"bytes", "xxh3"}} of files in a folder, by their names relative to it.
nlohmann::json describe_files(const std::filesystem::path& folder,
                              const std::vector<std::string>& names);

/// Compares files with describe_files' result; returns a line for each that is missing, of another
/// size or, where `checksums`, of other content. Never throws for a bad file.
std::vector<std::string> file_problems(const std::filesystem::path& folder,
                                       const nlohmann::json& files, bool checksums);

}  // namespace scone
