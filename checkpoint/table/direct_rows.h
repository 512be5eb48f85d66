#pragma once

#include <filesystem>
#include <memory>
#include <stdexcept>

#include "checkpoint/table/row_source.h"

namespace scone {

/// The file system or the kernel does not read past the page cache.
class DirectRefused : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Rows read by O_DIRECT and io_uring. Throws DirectRefused, and what open_rows throws.
std::unique_ptr<RowSource> open_direct_rows(const std::filesystem::path& bundle,
                                            const TableLayout& layout,
                                            const RowSourceOptions& options);

/// Reads records first .. first + count - 1 through the page cache; out: count records. Throws
/// std::runtime_error.
void read_records(const std::filesystem::path& bundle, const TableLayout& layout,
                  std::int64_t first, std::int64_t count, std::byte* out);

/// Throws std::out_of_range for ids that are no rows.
void check_row_ids(std::span<const std::int64_t> ids, std::int64_t rows);

}  // namespace scone
