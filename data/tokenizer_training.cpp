#include "data/tokenizer_training.h"

#include <fmt/format.h>
#include <sentencepiece_trainer.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/utf8.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

/// Bytes of lines that the trainer gets at most; more make it slower and the pieces hardly better.
constexpr std::size_t kSampleBytes = 24'000'000;
/// Longer lines are cut: the trainer skips lines beyond its limit.
constexpr std::size_t kLineBytes = 4096;
/// Rarer characters than this share of the text are left to the byte pieces.
constexpr double kCharacterCoverage = 0.9995;
/// 256 bytes, <unk>, <s>, </s>, newline and tab.
constexpr std::int64_t kReservedPieces = 261;
constexpr std::int64_t kSmallestVocabulary = kReservedPieces + 3;

using CharacterCounts = std::unordered_map<std::string_view, std::int64_t>;

/// Length of the UTF-8 character that starts at text[0]; text is well-formed.
std::size_t character_length(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const std::size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(length, text.size());
}

/// Holds lines until their bytes pass the limit, then drops a half of all lines, by a hash of their
/// number, and takes only such from then on. What is held depends on the lines and their order
/// alone.
class LineSample {
 public:
  void add(std::string_view line) {
    const std::uint64_t number = seen_++;
    const std::uint64_t hash = XXH3_64bits(&number, sizeof(number));
    if (hash > threshold_) return;
    lines_.emplace_back(hash, line);
    bytes_ += line.size();
    while (bytes_ > kSampleBytes) {
      threshold_ /= 2;
      std::erase_if(lines_, [&](const auto& entry) { return entry.first > threshold_; });
      bytes_ = 0;
      for (const auto& entry : lines_) bytes_ += entry.second.size();
    }
  }
  std::vector<std::string> take() {
    std::vector<std::string> lines;
    lines.reserve(lines_.size());
    for (auto& entry : lines_) lines.push_back(std::move(entry.second));
    lines_.clear();
    return lines;
  }

 private:
  std::uint64_t threshold_ = ~std::uint64_t{0};
  std::uint64_t seen_ = 0;
  std::size_t bytes_ = 0;
  std::vector<std::pair<std::uint64_t, std::string>> lines_;
};

/// Newlines and tabs are pieces of their own, so nothing is learnt across them.
void add_lines(std::string_view document, LineSample& sample) {
  while (!document.empty()) {
    std::size_t end = std::min(document.find_first_of("\n\t"), document.size());
    const bool cut = end > kLineBytes;
    if (cut) {
      end = kLineBytes;
      while ((static_cast<unsigned char>(document[end]) & 0xC0) == 0x80) --end;
    }
    if (end > 0) sample.add(document.substr(0, end));
    document.remove_prefix(cut ? end : std::min(end + 1, document.size()));
  }
}

CharacterCounts count_characters(const std::vector<std::string>& lines, int threads) {
  CharacterCounts counts;
#pragma omp parallel num_threads(std::max(threads, 1))
  {
    CharacterCounts mine;
#pragma omp for schedule(static)
    for (std::size_t i = 0; i < lines.size(); ++i) {
      for (std::string_view rest = lines[i]; !rest.empty();) {
        const std::size_t length = character_length(rest);
        ++mine[rest.substr(0, length)];
        rest.remove_prefix(length);
      }
    }
#pragma omp critical
    for (const auto& [character, count] : mine) counts[character] += count;
  }
  return counts;
}

/// The characters that get pieces: the most frequent, up to the coverage and to `limit`. Those the
/// trainer keeps for itself (NUL, U+2581, U+2585 and U+2047) never do.
std::unordered_map<std::string, bool> choose_characters(const CharacterCounts& counts,
                                                        std::size_t limit) {
  std::vector<std::pair<std::int64_t, std::string_view>> ranked;
  std::int64_t total = 0;
  for (const auto& [character, count] : counts) {
    total += count;
    constexpr std::array<std::string_view, 3> kReserved = {"\xE2\x96\x81", "\xE2\x96\x85",
                                                           "\xE2\x81\x87"};
    if (character[0] != '\0' &&
        std::find(kReserved.begin(), kReserved.end(), character) == kReserved.end()) {
      ranked.emplace_back(-count, character);
    }
  }
  std::sort(ranked.begin(), ranked.end());
  std::unordered_map<std::string, bool> chosen;
  std::int64_t covered = 0;
  for (const auto& [negative_count, character] : ranked) {
    if (chosen.size() >= limit ||
        static_cast<double>(covered) >= kCharacterCoverage * static_cast<double>(total)) {
      break;
    }
    chosen.emplace(character, true);
    covered -= negative_count;
  }
  return chosen;
}

/// The lines without the characters that are left to the byte pieces, cut where one stood.
std::vector<std::string> cut_at_rare_characters(const std::vector<std::string>& lines,
                                                std::size_t limit, int threads) {
  const auto chosen = choose_characters(count_characters(lines, threads), limit);
  std::vector<std::string> result;
  result.reserve(lines.size());
  std::string current;
  const auto finish = [&] {
    if (!current.empty()) result.push_back(std::move(current));
    current.clear();
  };
  for (const std::string& line : lines) {
    for (std::string_view rest = line; !rest.empty();) {
      const std::size_t length = character_length(rest);
      if (chosen.contains(std::string(rest.substr(0, length)))) {
        current += rest.substr(0, length);
      } else {
        finish();
      }
      rest.remove_prefix(length);
    }
    finish();
  }
  return result;
}

class LineIterator : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return next_ >= lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  std::size_t next_ = 0;
};

/// A file that gets its name when it is whole, and goes where it never is.
class WholeFile {
 public:
  explicit WholeFile(fs::path file) : file_(std::move(file)), temporary_(file_) {
    temporary_ += ".tmp";
    stream_.open(temporary_, std::ios::binary);
    if (!stream_) {
      throw InputError(fmt::format(
          "{}: the trained tokenizer cannot be written there; check that the folder exists and "
          "may be written to",
          file_.string()));
    }
  }
  ~WholeFile() {
    if (done_) return;
    stream_.close();
    std::error_code ignored;
    fs::remove(temporary_, ignored);
  }
  WholeFile(const WholeFile&) = delete;
  void write(const std::string& bytes) {
    stream_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    stream_.close();
    std::error_code error;
    if (stream_) fs::rename(temporary_, file_, error);
    if (!stream_ || error) {
      throw InputError(fmt::format(
          "{}: writing the trained tokenizer failed; check the disk's free space", file_.string()));
    }
    done_ = true;
  }

 private:
  fs::path file_, temporary_;
  std::ofstream stream_;
  bool done_ = false;
};

/// The trainer says "Vocabulary size too high (32000). Please set it to a value <= 284."; returns
/// the bound, or "" for other messages.
std::string largest_size(const std::string& message) {
  static constexpr std::string_view kBefore = "a value <= ";
  const std::size_t found = message.find(kBefore);
  if (found == std::string::npos) return "";
  const std::size_t begin = found + kBefore.size();
  return message.substr(begin, message.find_first_not_of("0123456789", begin) - begin);
}

}  // namespace

void train_tokenizer(const std::function<bool(std::string&)>& next_document,
                     std::int64_t vocabulary_size, const std::filesystem::path& model_file,
                     int threads) {
  if (vocabulary_size < kSmallestVocabulary) {
    throw InputError(fmt::format(
        "--train-tokenizer: expected a size of at least {} (256 bytes, 5 special pieces and some "
        "characters), found {}; give a larger size",
        kSmallestVocabulary, vocabulary_size));
  }
  if (vocabulary_size > std::numeric_limits<std::int32_t>::max()) {
    throw InputError(fmt::format("--train-tokenizer: expected a size of at most {}, found {}",
                                 std::numeric_limits<std::int32_t>::max(), vocabulary_size));
  }
  WholeFile file(model_file);
  LineSample sample;
  std::string document;
  while (next_document(document)) {
    replace_ill_formed_utf8(document);
    add_lines(document, sample);
  }
  // Half of the pieces at most are single characters, so that some are left for merges.
  const auto limit = static_cast<std::size_t>((vocabulary_size - kReservedPieces + 1) / 2);
  const std::vector<std::string> lines = cut_at_rare_characters(sample.take(), limit, threads);
  if (lines.empty()) {
    throw InputError(
        "--train-tokenizer: the input holds no text to train on; give documents that are not "
        "blank");
  }

  const std::unordered_map<std::string, std::string> settings = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocabulary_size)},
      {"character_coverage", "1.0"},  // rare characters are gone already
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      {"user_defined_symbols", "\n,\t"},
      {"max_sentence_length", std::to_string(2 * kLineBytes)},
      {"shuffle_input_sentence", "false"},
      // Stands in the model's file, so it must not depend on the machine.
      {"num_threads", "2"},
      {"minloglevel", "2"},
  };
  LineIterator iterator(lines);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &iterator, &model);
  if (!status.ok()) {
    const std::string message = status.ToString();
    const std::string largest = largest_size(message);
    if (!largest.empty()) {
      throw InputError(fmt::format(
          "--train-tokenizer: expected a size that the input's text can fill, {} at most, found "
          "{}, which is too big; give a smaller size or more text",
          largest, vocabulary_size));
    }
    throw std::runtime_error(fmt::format("training the tokenizer failed: {}", message));
  }
  file.write(model);
}

}  // namespace scone
