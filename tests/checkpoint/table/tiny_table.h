#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/table/row_source.h"
#include "checkpoint/table/table_index.h"
#include "checkpoint/table/table_layout.h"
#include "temporary_folder.h"

namespace scone::test {

/// Random f-grams in the order of their ids, closed under prefix.
struct TinyFgrams {
  TableIndexHeader header;
  std::vector<TableKey> keys;
  std::vector<int> length;

  std::vector<std::int32_t> tokens(std::int64_t id) const;
  void write(const std::filesystem::path& path) const;
  /// With so many ids whose children have explicit starts.
  void write(const std::filesystem::path& path, std::int64_t head_ids) const;
};

/// Tokens by a power law, prefixes mostly of low ids, as in text. Less than `size` where there are
/// not so many. seed: of the generator.
TinyFgrams make_fgrams(std::int64_t vocabulary, std::int64_t size, int max_length,
                       std::uint64_t seed);
/// The same with ids of f-grams over `max_length` left without keys.
TinyFgrams limit_length(TinyFgrams fgrams, int max_length);

/// Whether tokens are an f-gram, by a hash map.
class IsFgram {
 public:
  explicit IsFgram(const TinyFgrams& fgrams);
  bool operator()(const std::vector<std::int32_t>& tokens) const;

 private:
  std::unordered_map<std::uint64_t, std::int64_t> id_of_;
};

/// The numbers of a row: the first says which, the rest follow from it.
std::vector<float> row_of(std::int64_t id, std::int64_t width);

/// Writes bundle.json, table/index.bin and the files of rows.
TableLayout write_tiny_bundle(const std::filesystem::path& folder, const TinyFgrams& fgrams,
                              RowType type, std::int64_t width, std::int64_t most_bytes);
/// The files of rows alone.
void write_rows(const std::filesystem::path& folder, const TableLayout& layout);

/// Changes the byte at an offset of a file, or cuts the file there.
void change_byte(const std::filesystem::path& path, std::int64_t offset, unsigned char flip);
/// Replaces the first occurrence of a text in a file by one of the same length.
void replace_text(const std::filesystem::path& path, const std::string& from,
                  const std::string& to);

}  // namespace scone::test
