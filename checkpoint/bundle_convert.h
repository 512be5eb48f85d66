#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "checkpoint/bake_table.h"
#include "checkpoint/table/row_format.h"

namespace scone {

struct ConvertOptions {
  std::filesystem::path source;                      // a bundle with a table
  std::filesystem::path bundle;                      // made by the conversion
  std::optional<RowType> type;                       // of its rows; none: the source's
  std::int64_t rows = 0;                             // of the first so many f-grams; 0: all
  bool overwrite = false;                            // replace an existing bundle
  std::int64_t file_bytes = std::int64_t{32} << 30;  // most of a file of rows
};

struct ConvertResult {
  RowType source_type = RowType::fp32, type = RowType::fp32;
  std::int64_t source_rows = 0, rows = 0, width = 0;
  std::int64_t table_bytes = 0;  // size of the files of rows
  std::int64_t index_bytes = 0;  // size of the index' file
  double seconds = 0;
  /// Whether rows that were rounded once are rounded again, or stored wider without being finer.
  bool rounded_before() const { return source_type != RowType::fp32 && source_type != type; }
};

/// Makes a bundle of the first f-grams of another one, in another type, without the checkpoint.
/// From fp32, all f-grams: every file is that of a bake in that type, byte by byte. Of the first
/// f-grams: so is every file but the rows, which are the source's; a bake of fewer f-grams computes
/// them in other batches, and may differ from them in their last bits. Made in
/// "<bundle>.tmp", which goes where it fails. Every file that is read is compared with its
/// checksum. Memory: a few blocks of rows and the source's index; where f-grams are left out, 24
/// bytes more for each f-gram of the source. On one rank. Throws InputError: no bundle, one of
/// another version, damaged (the file is named) or without a table; more rows asked for than it
/// has; rows that are not finite and shall be of another type; f-grams left out of one whose keys
/// are not all known; the target exists, or has an unfinished bake in its temporary folder.
/// std::runtime_error: too little space, or unwritable.
ConvertResult convert_bundle(const ConvertOptions& options, const BakeProgressReport& report = {});

}  // namespace scone
