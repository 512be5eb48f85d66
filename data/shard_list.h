#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace scone {

/// One shard as a list of shards remembers it.
struct ListedShard {
  std::string file;  // its name in the folder, or its path
  std::int64_t tokens = 0;
  std::string checksum;
};

/// The name of the list that lies beside the shards in each folder of `scone tokenize`.
inline constexpr const char* kShardListName = "shards.json";

/// Writes the list of a folder's shards (all of its *.h5, by their attributes) into it, after them.
/// Throws InputError where it cannot be written.
void write_shard_list(const std::filesystem::path& folder);

/// The folder's list; empty where it has none. Throws InputError for a damaged one.
std::vector<ListedShard> read_shard_list(const std::filesystem::path& folder);

/// How `found` differs from `listed`, a line each shard: missing, changed, or not listed; one line
/// for the same shards in another order. Shards are told apart by `file`, then by checksum.
std::vector<std::string> shard_changes(const std::vector<ListedShard>& listed,
                                       const std::vector<ListedShard>& found);

/// The lines, indented, a line each; of many, the first ones and how many more there are.
std::string format_changes(const std::vector<std::string>& changes);

}  // namespace scone
