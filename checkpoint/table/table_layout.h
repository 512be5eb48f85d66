#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "checkpoint/table/row_format.h"

namespace scone {

/// How the rows of an f-gram table lie in its files: record `id` is in file id / rows_per_file. A
/// file is one page of JSON that says what it is, then its records in the order of the ids.
struct TableLayout {
  RowType type = RowType::fp32;
  std::int64_t width = 0;
  std::int64_t rows = 0;
  std::int64_t rows_per_file = 0;  // at least 1; the last file may have fewer
  std::string fgrams;              // fingerprint of the f-grams whose rows these are

  std::int64_t bytes_of_record() const { return record_bytes(type, width); }
  std::int64_t files() const { return (rows + rows_per_file - 1) / rows_per_file; }
  std::int64_t rows_of_file(std::int64_t file) const;
  std::int64_t bytes_of_file(std::int64_t file) const;
  std::int64_t bytes() const;  // of all files
  bool operator==(const TableLayout&) const = default;
};

inline constexpr std::int64_t kTableDataOffset = 4096;  // of the first record of a file, bytes

// Beyond any table; their product with a record's bytes does not overflow.
inline constexpr std::int64_t kMostTableRows = std::int64_t{1} << 40;
inline constexpr std::int64_t kMostTableWidth = std::int64_t{1} << 20;

/// A file's path in the bundle: "table/rows-00000.bin".
std::string table_file_name(std::int64_t file);

/// The layout with as many rows a file as `most_bytes` hold, at least one. Throws InputError for
/// sizes out of range.
TableLayout make_table_layout(RowType type, std::int64_t width, std::int64_t rows,
                              std::int64_t most_bytes, std::string fgrams);

/// The first page of a file, kTableDataOffset bytes.
std::string table_file_header(const TableLayout& layout, std::int64_t file);

/// Throws InputError, naming the file, where it is missing, cut, or not the one that the layout
/// expects: its first page and its size are compared.
void check_table_file(const std::filesystem::path& bundle, const TableLayout& layout,
                      std::int64_t file);

}  // namespace scone
