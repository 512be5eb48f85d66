#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "checkpoint/table/row_source.h"
#include "checkpoint/table/table_index.h"
#include "checkpoint/table/table_layout.h"

namespace scone {

/// The offloaded f-gram table of a bundle: index and rows. Immutable, safe to use from several
/// threads at once; a call works on its own thread alone.
class FgramTable {
 public:
  /// Opens the table of a bundle's folder. Throws InputError: no bundle, one without a table (a
  /// baseline's) or of another version, a missing or cut file (named), an index or rows of other
  /// f-grams than bundle.json says; std::runtime_error: not enough memory for `ram`.
  explicit FgramTable(const std::filesystem::path& bundle, const RowSourceOptions& options = {});
  ~FgramTable();
  FgramTable(FgramTable&&) noexcept;

  const TableLayout& layout() const;
  const TableIndex& index() const;
  std::int64_t rows() const { return layout().rows; }
  std::int64_t width() const { return layout().width; }
  /// How rows are read: `mmap` where the file system or the kernel refuses `direct`.
  TableAccess access() const;
  /// Why that is not what was asked for; empty: it is. For one line of warning.
  const std::string& fallback() const;

  /// out[i * width ..] = row ids[i] as fp32. ids: in any order, `direct` reads repeats once; out:
  /// ids.size() * width numbers. Throws std::out_of_range for other ids or sizes,
  /// std::runtime_error where reading fails.
  void lookup(std::span<const std::int64_t> ids, std::span<float> out) const;
  /// The records as they are stored, layout().bytes_of_record() bytes each. Throws as lookup.
  void read(std::span<const std::int64_t> ids, std::span<std::byte> out) const;
  /// For other uses of the records, where they lie: see RowSource::read.
  const RowSource& records() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
