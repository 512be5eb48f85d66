#include "checkpoint/table/table_layout.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "parallel/error.h"

namespace scone {
namespace {

constexpr const char* kFormat = "scone-fgram-rows";
constexpr int kVersion = 2;

nlohmann::json description_of(const TableLayout& layout, std::int64_t file) {
  return {{"format", kFormat},
          {"format_version", kVersion},
          {"dtype", name_of(layout.type)},
          {"width", layout.width},
          {"first_row", file * layout.rows_per_file},
          {"rows", layout.rows_of_file(file)},
          {"record_bytes", layout.bytes_of_record()},
          {"data_offset", kTableDataOffset},
          {"fgrams", layout.fgrams}};
}

}  // namespace

std::int64_t TableLayout::rows_of_file(std::int64_t file) const {
  return std::min(rows_per_file, rows - file * rows_per_file);
}

std::int64_t TableLayout::bytes_of_file(std::int64_t file) const {
  return kTableDataOffset + rows_of_file(file) * bytes_of_record();
}

std::int64_t TableLayout::bytes() const {
  return files() * kTableDataOffset + rows * bytes_of_record();
}

std::string table_file_name(std::int64_t file) {
  std::string digits = std::to_string(file);
  if (digits.size() < 5) digits.insert(0, 5 - digits.size(), '0');
  return "table/rows-" + digits + ".bin";
}

TableLayout make_table_layout(RowType type, std::int64_t width, std::int64_t rows,
                              std::int64_t most_bytes, std::string fgrams) {
  if (width < 1 || width > kMostTableWidth || rows < 0 || rows > kMostTableRows) {
    throw InputError("f-gram table: expected a width of 1.." + std::to_string(kMostTableWidth) +
                     " and 0.." + std::to_string(kMostTableRows) + " rows, found " +
                     std::to_string(width) + " and " + std::to_string(rows));
  }
  const std::int64_t held = (most_bytes - kTableDataOffset) / record_bytes(type, width);
  return {type, width, rows, std::max<std::int64_t>(held, 1), std::move(fgrams)};
}

std::string table_file_header(const TableLayout& layout, std::int64_t file) {
  std::string page = description_of(layout, file).dump();
  page.resize(static_cast<std::size_t>(kTableDataOffset) - 1, ' ');
  return page + "\n";
}

void check_table_file(const std::filesystem::path& bundle, const TableLayout& layout,
                      std::int64_t file) {
  const std::filesystem::path path = bundle / table_file_name(file);
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) {
    throw InputError(path.string() + ": " + error.message() +
                     "; a file of the f-gram table is missing: copy the bundle again, or bake it");
  }
  const std::int64_t expected = layout.bytes_of_file(file);
  if (static_cast<std::int64_t>(size) != expected) {
    throw InputError(path.string() + ": expected " + std::to_string(expected) + " bytes for " +
                     std::to_string(layout.rows_of_file(file)) + " rows of width " +
                     std::to_string(layout.width) + " (" + name_of(layout.type) + "), found " +
                     std::to_string(size) +
                     (static_cast<std::int64_t>(size) < expected ? " (cut short)" : "") +
                     "; copy the bundle again, or bake it");
  }
  std::string page(static_cast<std::size_t>(kTableDataOffset), '\0');
  std::ifstream stream(path, std::ios::binary);
  if (!stream.read(page.data(), kTableDataOffset))
    throw InputError(path.string() + ": its first page cannot be read");
  const nlohmann::json found = nlohmann::json::parse(page, nullptr, /*allow_exceptions=*/false);
  if (!found.is_object() || found.value("format", nlohmann::json{}) != kFormat)
    throw InputError(path.string() +
                     ": not a file of an f-gram table: its first page is no JSON "
                     "object with the format \"" +
                     kFormat + "\"");
  const nlohmann::json wanted = description_of(layout, file);
  for (const auto& [key, value] : wanted.items()) {
    const nlohmann::json held = found.value(key, nlohmann::json{});
    if (held != value)
      throw InputError(path.string() + ": " + key + ": expected " + value.dump() +
                       " as bundle.json says, found " + held.dump() +
                       "; the file belongs to another bundle: copy it again, or bake it");
  }
}

}  // namespace scone
