#include "checkpoint/bake_journal.h"

#include <fmt/format.h>

#include <sstream>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "checkpoint/durable_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDescription = "bake.json";
constexpr const char* kBlocks = "bake-blocks-";  // and the rank

std::vector<fs::path> block_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().starts_with(kBlocks)) files.push_back(entry.path());
  return files;
}

}  // namespace

bool BakeJournal::exists(const fs::path& folder) {
  std::error_code error;
  return fs::is_regular_file(folder / kDescription, error);
}

bool BakeJournal::continues(const fs::path& folder, const nlohmann::json& baked) {
  if (!exists(folder)) return false;
  try {
    return read_json_file(folder / kDescription) == baked;
  } catch (const InputError&) {
    return false;  // it was being written when the bake ended
  }
}

void BakeJournal::begin(const fs::path& folder, const nlohmann::json& baked) {
  write_text_durably(folder / kDescription, baked.dump(2) + "\n");
}

std::map<std::int64_t, std::string> BakeJournal::finished(const fs::path& folder) {
  std::map<std::int64_t, std::string> blocks;
  for (const fs::path& path : block_files(folder)) {
    std::ifstream file(path);
    std::string line;
    while (std::getline(file, line)) {
      if (file.eof()) break;  // without its newline
      std::istringstream words(line);
      std::int64_t block = 0;
      std::string checksum;
      if (words >> block >> checksum) blocks[block] = checksum;
    }
  }
  return blocks;
}

void BakeJournal::remove(const fs::path& folder) {
  std::error_code ignored;
  for (const fs::path& path : block_files(folder)) fs::remove(path, ignored);
  fs::remove(folder / kDescription, ignored);
}

BakeJournal::BakeJournal(const fs::path& folder, int rank)
    : path_(folder / (kBlocks + std::to_string(rank))), file_(path_, std::ios::app) {
  // A line that a kill cut short must not become the begin of the next.
  file_ << '\n' << std::flush;
  if (!file_) throw std::runtime_error(fmt::format("{}: cannot be written", path_.string()));
}

void BakeJournal::add(std::int64_t block, const std::string& checksum) {
  file_ << block << ' ' << checksum << '\n' << std::flush;
  if (!file_) throw std::runtime_error(fmt::format("{}: cannot be written", path_.string()));
}

}  // namespace scone
