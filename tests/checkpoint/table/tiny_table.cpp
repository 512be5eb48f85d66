#include "tiny_table.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <unordered_set>

#include "checkpoint/table/index_layout.h"

namespace scone::test {
namespace {

std::uint64_t number_of(std::int64_t prefix, std::int32_t token) {
  return static_cast<std::uint64_t>(prefix + (std::int64_t{1} << 30)) << 32U |
         static_cast<std::uint32_t>(token);
}

}  // namespace

std::vector<std::int32_t> TinyFgrams::tokens(std::int64_t id) const {
  std::vector<std::int32_t> result;
  for (; id >= 0; id = keys[static_cast<std::size_t>(id)].prefix) {
    const TableKey& key = keys[static_cast<std::size_t>(id)];
    result.push_back(key.last_token);
    if (key.prefix < 0) result.push_back(static_cast<std::int32_t>(-1 - key.prefix));
  }
  std::reverse(result.begin(), result.end());
  return result;
}

void TinyFgrams::write(const std::filesystem::path& path) const {
  TableIndex::write(path, header,
                    [&](std::int64_t id) { return keys[static_cast<std::size_t>(id)]; });
}

void TinyFgrams::write(const std::filesystem::path& path, std::int64_t head_ids) const {
  write_index(
      path, header, [&](std::int64_t id) { return keys[static_cast<std::size_t>(id)]; }, head_ids);
}

TinyFgrams make_fgrams(std::int64_t vocabulary, std::int64_t size, int max_length,
                       std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto uniform = [&] { return std::uniform_real_distribution<double>()(random); };
  // Ranks by a power law; token ids are not their ranks.
  const auto token = [&] {
    const double rank = std::pow(static_cast<double>(vocabulary), uniform()) - 1;
    const auto low = std::min(static_cast<std::int64_t>(rank), vocabulary - 1);
    return static_cast<std::int32_t>((low * 7919 + 13) % vocabulary);
  };
  TinyFgrams result;
  std::unordered_set<std::uint64_t> seen;
  int refused = 0;
  while (std::ssize(result.keys) < size && refused < 10000) {
    const std::int64_t here = std::ssize(result.keys);
    TableKey key{-1 - std::int64_t{token()}, token(), true};
    int length = 2;
    if (here > 0 && uniform() < 0.65) {
      const double power = uniform() < 0.1 ? 1 : 2.5;
      key.prefix =
          static_cast<std::int64_t>(static_cast<double>(here) * std::pow(uniform(), power));
      length = result.length[static_cast<std::size_t>(key.prefix)] + 1;
    }
    if (length > max_length || !seen.insert(number_of(key.prefix, key.last_token)).second) {
      ++refused;
      continue;
    }
    refused = 0;
    result.keys.push_back(key);
    result.length.push_back(length);
  }
  result.header.rows = std::ssize(result.keys);
  result.header.max_length = max_length;
  result.header.token_vocabulary_size = vocabulary;
  result.header.fgrams = "fingerprint-" + std::to_string(seed);
  return result;
}

TinyFgrams limit_length(TinyFgrams fgrams, int max_length) {
  fgrams.header.max_length = max_length;
  fgrams.header.unused = 0;
  for (std::size_t id = 0; id < fgrams.keys.size(); ++id) {
    fgrams.keys[id].used = fgrams.length[id] <= max_length;
    if (!fgrams.keys[id].used) ++fgrams.header.unused;
  }
  return fgrams;
}

IsFgram::IsFgram(const TinyFgrams& fgrams) {
  for (std::int64_t id = 0; id < fgrams.header.rows; ++id) {
    const TableKey& key = fgrams.keys[static_cast<std::size_t>(id)];
    if (key.used) id_of_[number_of(key.prefix, key.last_token)] = id;
  }
}

bool IsFgram::operator()(const std::vector<std::int32_t>& tokens) const {
  if (tokens.size() < 2) return false;
  std::int64_t prefix = -1 - std::int64_t{tokens[0]};
  for (std::size_t i = 1; i < tokens.size(); ++i) {
    const auto found = id_of_.find(number_of(prefix, tokens[i]));
    if (found == id_of_.end()) return false;
    prefix = found->second;
  }
  return true;
}

std::vector<float> row_of(std::int64_t id, std::int64_t width) {
  std::vector<float> row(static_cast<std::size_t>(width));
  for (std::size_t i = 0; i < row.size(); ++i) {
    const auto hash = (static_cast<std::uint64_t>(id) * 1000003 + i) * 0x9E3779B97F4A7C15U >> 40U;
    row[i] = static_cast<float>(hash) / 8388608.0F - 1.0F;
  }
  row[0] = static_cast<float>(id % 256);
  if (width > 1) row[1] = static_cast<float>(id / 256 % 256);
  if (width > 2) row[2] = static_cast<float>(id / 65536);
  return row;
}

void write_rows(const std::filesystem::path& folder, const TableLayout& layout) {
  std::filesystem::create_directories(folder / "table");
  std::vector<std::byte> record(static_cast<std::size_t>(layout.bytes_of_record()));
  for (std::int64_t file = 0; file < layout.files(); ++file) {
    std::ofstream out(folder / table_file_name(file), std::ios::binary);
    out << table_file_header(layout, file);
    for (std::int64_t row = 0; row < layout.rows_of_file(file); ++row) {
      encode_row(layout.type, row_of(file * layout.rows_per_file + row, layout.width),
                 record.data());
      out.write(reinterpret_cast<const char*>(record.data()), std::ssize(record));
    }
    if (!out.flush()) throw std::runtime_error("rows cannot be written");
  }
}

TableLayout write_tiny_bundle(const std::filesystem::path& folder, const TinyFgrams& fgrams,
                              RowType type, std::int64_t width, std::int64_t most_bytes) {
  const TableLayout layout =
      make_table_layout(type, width, fgrams.header.rows, most_bytes, fgrams.header.fgrams);
  write_rows(folder, layout);
  fgrams.write(folder / "table/index.bin");
  std::ofstream(folder / "bundle.json")
      << R"({"format": "scone-bundle", "format_version": 2, "table": {"dtype": ")" << name_of(type)
      << R"(", "width": )" << width << R"(, "rows": )" << layout.rows << R"(, "rows_per_file": )"
      << layout.rows_per_file << R"(, "record_bytes": )" << layout.bytes_of_record()
      << R"(, "data_offset": )" << kTableDataOffset
      << R"(, "index": "table/index.bin"}, "fgrams": {"size": )" << layout.rows
      << R"(, "max_length": )" << fgrams.header.max_length << R"(, "fingerprint": ")"
      << fgrams.header.fgrams << "\"}}\n";
  return layout;
}

void change_byte(const std::filesystem::path& path, std::int64_t offset, unsigned char flip) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(offset);
  const int found = file.get();
  file.seekp(offset);
  file.put(static_cast<char>(found ^ flip));
  if (!file.flush()) throw std::runtime_error(path.string() + " cannot be changed");
}

void replace_text(const std::filesystem::path& path, const std::string& from,
                  const std::string& to) {
  std::ifstream in(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(in), {});
  const std::size_t at = text.find(from);
  if (at == std::string::npos || from.size() != to.size())
    throw std::runtime_error(path.string() + " does not hold " + from);
  text.replace(at, from.size(), to);
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace scone::test
