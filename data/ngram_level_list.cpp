#include "data/ngram_level_list.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/ngram_key.h"

namespace scone {
namespace {

std::int64_t record_bytes(int length, int bits) { return 8 * (words_of_key(length, bits) + 1); }

}  // namespace

NgramLevelList::NgramLevelList(std::filesystem::path folder, const TokenCorpus& corpus,
                               const NgramCounterOptions& options, int ranks, int bits)
    : folder_(std::move(folder)),
      run_(fmt::format("corpus {} of {} tokens, min_count {}, ranks {}, bits {}, layout 1",
                       corpus.fingerprint(), corpus.tokens(), options.min_count, ranks, bits)),
      max_length_(options.max_length),
      bits_(bits) {}

std::vector<NgramLevelFile> NgramLevelList::read() const {
  std::ifstream file(folder_ / file_name);
  const nlohmann::json list = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!list.is_object() || list.value("run", "") != run_ || !list.contains("levels")) return {};
  std::vector<NgramLevelFile> levels;
  for (const auto& entry : list["levels"]) {
    NgramLevelFile level;
    level.length = static_cast<int>(levels.size()) + 2;
    if (level.length > max_length_) break;
    level.records = entry.value("records", std::int64_t{-1});
    level.total = entry.value("total", std::int64_t{-1});
    level.path = folder_ / fmt::format("level-{}", level.length);
    std::error_code error;
    const auto size = std::filesystem::file_size(level.path, error);
    if (error || level.records < 0 || level.total < level.records ||
        size != static_cast<std::uintmax_t>(level.records * record_bytes(level.length, bits_)))
      break;
    levels.push_back(level);
  }
  return levels;
}

void NgramLevelList::write(const std::vector<NgramLevelFile>& levels) const {
  nlohmann::json list{{"run", run_}, {"levels", nlohmann::json::array()}};
  for (const NgramLevelFile& level : levels)
    list["levels"].push_back({{"records", level.records}, {"total", level.total}});
  const std::string text = list.dump();
  const std::filesystem::path partial = folder_ / fmt::format("{}.partial", file_name);
  {
    SpillFile file = SpillFile::create(partial, /*named=*/true);
    file.append(std::as_bytes(std::span(text)));
    file.sync();
  }
  std::filesystem::rename(partial, folder_ / file_name);
}

}  // namespace scone
