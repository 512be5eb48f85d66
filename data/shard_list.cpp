#include "data/shard_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/hdf5_file.h"
#include "data/json_integer.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "scone-shards";
constexpr std::int64_t kFormatVersion = 1;
constexpr std::size_t kMostLines = 50;

}  // namespace

void write_shard_list(const fs::path& folder) {
  std::set<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".h5") files.insert(entry.path());
  }
  nlohmann::json shards = nlohmann::json::array();
  for (const fs::path& path : files) {
    const Hdf5File file = Hdf5File::open(path);
    shards.push_back({{"file", path.filename().string()},
                      {"tokens", file.integer_attribute("tokens")},
                      {"checksum", file.string_attribute("checksum")}});
  }
  const nlohmann::json list = {
      {"format", kFormat}, {"format_version", kFormatVersion}, {"shards", shards}};
  const fs::path path = folder / kShardListName;
  std::ofstream stream(path, std::ios::trunc);
  stream << list.dump(1) << '\n';
  stream.close();
  if (!stream)
    throw InputError(fmt::format("{}: cannot be written; free some space, or give another --output",
                                 path.string()));
}

std::vector<ListedShard> read_shard_list(const fs::path& folder) {
  const fs::path path = folder / kShardListName;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return {};
  std::vector<ListedShard> shards;
  try {
    const auto list =
        nlohmann::json::parse(std::string(std::istreambuf_iterator<char>(stream), {}));
    if (list.at("format") != kFormat || list.at("format_version") != kFormatVersion)
      throw InputError(fmt::format("{}: expected format {} {}, found {} {}", path.string(), kFormat,
                                   kFormatVersion, list.at("format").dump(),
                                   list.at("format_version").dump()));
    for (const auto& shard : list.at("shards"))
      shards.push_back({shard.at("file").get<std::string>(), json_integer(shard.at("tokens")),
                        shard.at("checksum").get<std::string>()});
  } catch (const nlohmann::json::exception& error) {
    throw InputError(
        fmt::format("{}: not the list that `scone tokenize` writes ({}); tokenize "
                    "again, or give the shards by name",
                    path.string(), error.what()));
  }
  return shards;
}

std::vector<std::string> shard_changes(const std::vector<ListedShard>& listed,
                                       const std::vector<ListedShard>& found) {
  std::map<std::string, const ListedShard*> found_by_file;
  for (const ListedShard& shard : found) found_by_file.emplace(shard.file, &shard);
  std::map<std::string, const ListedShard*> unlisted = found_by_file;
  for (const ListedShard& shard : listed) unlisted.erase(shard.file);
  std::vector<std::string> changes;
  for (const ListedShard& shard : listed) {
    const auto same = found_by_file.find(shard.file);
    if (same != found_by_file.end()) {
      if (same->second->checksum == shard.checksum) continue;
      changes.push_back(fmt::format(
          "{}: changed: expected checksum {} ({} tokens), found {} ({} tokens)", shard.file,
          shard.checksum, shard.tokens, same->second->checksum, same->second->tokens));
      continue;
    }
    const auto moved = std::find_if(unlisted.begin(), unlisted.end(), [&](const auto& entry) {
      return entry.second->checksum == shard.checksum;
    });
    if (moved != unlisted.end()) {
      unlisted.erase(moved);
    } else {
      changes.push_back(fmt::format("{}: missing (checksum {}, {} tokens)", shard.file,
                                    shard.checksum, shard.tokens));
    }
  }
  for (const auto& [file, shard] : unlisted)
    changes.push_back(fmt::format("{}: not among them before ({} tokens)", file, shard->tokens));
  const auto same_checksum = [](const ListedShard& a, const ListedShard& b) {
    return a.checksum == b.checksum;
  };
  if (changes.empty() &&
      !std::equal(listed.begin(), listed.end(), found.begin(), found.end(), same_checksum))
    changes.emplace_back("the same shards in another order");
  return changes;
}

std::string format_changes(const std::vector<std::string>& changes) {
  std::string text;
  for (std::size_t i = 0; i < std::min(changes.size(), kMostLines); ++i)
    text += "\n  " + changes[i];
  if (changes.size() > kMostLines)
    text += fmt::format("\n  and {} more", changes.size() - kMostLines);
  return text;
}

}  // namespace scone
