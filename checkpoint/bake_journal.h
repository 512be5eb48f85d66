#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace scone {

/// What a bake that was ended leaves in its folder, beside the rows: what it baked, and which
/// blocks are finished, with the checksums of their records. Each rank writes a file of its own; a
/// later bake, of any number of ranks, reads them all.
class BakeJournal {
 public:
  /// Whether the folder holds an unfinished bake.
  static bool exists(const std::filesystem::path& folder);
  /// Whether it is one of just this.
  static bool continues(const std::filesystem::path& folder, const nlohmann::json& baked);
  /// Says that the folder is an unfinished bake of this, once its row files are there.
  static void begin(const std::filesystem::path& folder, const nlohmann::json& baked);
  /// The checksums of the blocks that any rank finished. Half-written lines do not count.
  static std::map<std::int64_t, std::string> finished(const std::filesystem::path& folder);
  /// Takes all of it out of a folder.
  static void remove(const std::filesystem::path& folder);

  BakeJournal(const std::filesystem::path& folder, int rank);
  /// After the block's records were written. Throws std::runtime_error.
  void add(std::int64_t block, const std::string& checksum);

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace scone
