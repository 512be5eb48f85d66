#include "checkpoint/table/index_layout.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "data/json_integer.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr const char* kFormat = "scone-fgram-index";
constexpr int kVersion = 1;
constexpr std::size_t kLongestFingerprint = 1024;

unsigned bits_below(std::int64_t bound) {
  const auto largest = static_cast<std::uint64_t>(std::max<std::int64_t>(bound - 1, 1));
  return static_cast<unsigned>(std::bit_width(largest));
}

std::int64_t end_of(IndexLayout::Section section) {
  return (section.offset + section.bytes + 63) / 64 * 64;
}

nlohmann::json section_of(IndexLayout::Section section) {
  return {{"offset", section.offset}, {"bytes", section.bytes}};
}

nlohmann::json description_of(const IndexLayout& layout) {
  const TableIndexHeader& header = layout.header;
  return {{"format", kFormat},
          {"format_version", kVersion},
          {"rows", header.rows},
          {"unused", header.unused},
          {"max_length", header.max_length},
          {"token_vocabulary_size", header.token_vocabulary_size},
          {"fgrams", header.fgrams},
          {"token_bits", layout.token_bits()},
          {"id_bits", layout.id_bits()},
          {"head_ids", layout.head_ids},
          {"head_entries", layout.head_entries},
          {"starts", section_of(layout.starts())},
          {"directory", section_of(layout.directory())},
          {"entries", section_of(layout.packed())},
          {"degrees", section_of(layout.degrees())}};
}

void check_range(const std::string& source, const char* key, std::int64_t value, std::int64_t least,
                 std::int64_t most) {
  if (value < least || value > most) {
    throw InputError(source + ": f-gram index: " + key + ": expected " + std::to_string(least) +
                     ".." + std::to_string(most) + ", found " + std::to_string(value));
  }
}

}  // namespace

unsigned IndexLayout::token_bits() const { return bits_below(header.token_vocabulary_size); }
unsigned IndexLayout::id_bits() const { return bits_below(header.rows); }

IndexLayout::Section IndexLayout::starts() const {
  return {kIndexPageBytes, 4 * (explicit_prefixes() + 1)};
}
IndexLayout::Section IndexLayout::directory() const { return {end_of(starts()), 4 * blocks()}; }
IndexLayout::Section IndexLayout::packed() const {
  return {end_of(directory()), (entries() * entry_bits() + 7) / 8 + 8};
}
IndexLayout::Section IndexLayout::degrees() const {
  return {end_of(packed()), (degree_bits() + 63) / 64 * 8};
}
std::int64_t IndexLayout::file_bytes() const { return degrees().offset + degrees().bytes; }

void check_index_header(const TableIndexHeader& header, const std::string& source) {
  check_range(source, "rows", header.rows, 0, kMostIndexRows);
  check_range(source, "unused", header.unused, 0, header.rows);
  check_range(source, "max_length", header.max_length, 0, kLongestIndexed);
  check_range(source, "token_vocabulary_size", header.token_vocabulary_size, 1,
              kMostTokenVocabulary);
  check_range(source, "bytes of fgrams", static_cast<std::int64_t>(header.fgrams.size()), 0,
              kLongestFingerprint);
}

std::string index_page(const IndexLayout& layout) {
  std::string page = description_of(layout).dump();
  page.resize(static_cast<std::size_t>(kIndexPageBytes) - 1, ' ');
  return page + "\n";
}

IndexLayout parse_index_page(const std::string& page, const std::string& source) {
  const nlohmann::json found = nlohmann::json::parse(page, nullptr, /*allow_exceptions=*/false);
  if (!found.is_object() || found.value("format", nlohmann::json{}) != kFormat) {
    throw InputError(source +
                     ": no index of f-grams: its first page is no JSON object with the "
                     "format \"" +
                     kFormat + "\"");
  }
  if (found.value("format_version", nlohmann::json{}) != kVersion) {
    throw InputError(source + ": expected version " + std::to_string(kVersion) + " of the format " +
                     kFormat + ", found " + found.value("format_version", nlohmann::json{}).dump() +
                     "; read it by the version of scone that wrote it, or bake it again");
  }
  IndexLayout layout;
  try {
    layout.header.rows = json_integer(found.at("rows"));
    layout.header.unused = json_integer(found.at("unused"));
    const std::int64_t max_length = json_integer(found.at("max_length"));
    check_range(source, "max_length", max_length, 0, kLongestIndexed);
    layout.header.max_length = static_cast<int>(max_length);
    layout.header.token_vocabulary_size = json_integer(found.at("token_vocabulary_size"));
    layout.header.fgrams = found.at("fgrams").get<std::string>();
    layout.head_ids = json_integer(found.at("head_ids"));
    layout.head_entries = json_integer(found.at("head_entries"));
  } catch (const nlohmann::json::exception& error) {
    throw InputError(source + ": index of f-grams: its first page: " + error.what());
  }
  check_index_header(layout.header, source);
  check_range(source, "head_ids", layout.head_ids, 0, layout.header.rows);
  check_range(source, "head_entries", layout.head_entries, 0, layout.entries());
  const nlohmann::json expected = description_of(layout);
  for (const auto& [key, value] : expected.items()) {
    if (found.value(key, nlohmann::json{}) != value) {
      throw InputError(source + ": index of f-grams: " + key + ": expected " + value.dump() +
                       " by its other numbers, found " + found.value(key, nlohmann::json{}).dump());
    }
  }
  return layout;
}

}  // namespace scone
