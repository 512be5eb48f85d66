#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "checkpoint/row_format.h"
#include "model/tensor.h"

namespace scone {

/// The file of an f-gram table: one page of JSON that says what it is, then record `id` at byte
/// kTableDataOffset + id * record_bytes.
struct TableLayout {
  RowType type = RowType::fp32;
  std::int64_t width = 0;
  std::int64_t rows = 0;
  std::int64_t bytes_of_record() const { return record_bytes(type, width); }
  std::int64_t file_bytes() const;
};
inline constexpr std::int64_t kTableDataOffset = 4096;

/// The first page of a table file, kTableDataOffset bytes.
std::string table_header(const TableLayout& layout);
/// Reads and checks the first page and the file's size. Throws InputError.
TableLayout read_table_layout(const std::filesystem::path& path);

/// The offloaded f-gram table of a bundle: one aligned record a row, ordered by f-gram id, mapped
/// into memory read-only. Pages are read on first use, without read-ahead.
class FgramTable {
 public:
  /// description: bundle.json's "table". Throws InputError where it and the file disagree.
  FgramTable(const std::filesystem::path& bundle, const nlohmann::json& description);
  ~FgramTable();
  FgramTable(const FgramTable&) = delete;
  FgramTable& operator=(const FgramTable&) = delete;

  std::int64_t rows() const;
  std::int64_t width() const;
  RowType type() const;
  /// out[i, :] = row ids[i] as fp32. out: [ids.size(), width]. Throws std::out_of_range. Safe from
  /// several threads at once.
  void lookup(std::span<const std::int64_t> ids, const Tensor& out) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone
