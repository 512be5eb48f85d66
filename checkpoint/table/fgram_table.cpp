#include "checkpoint/table/fgram_table.h"

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/json_integer.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr const char* kBundleFormat = "scone-bundle";
constexpr int kBundleVersion = 2;
constexpr std::int64_t kMostRowsPerFile = std::int64_t{1} << 60;  // sums with it do not overflow
constexpr const char* kIndexFile = "table/index.bin";

/// What bundle.json says of the table.
struct Description {
  TableLayout layout;
  std::int64_t max_length = 0;
};

nlohmann::json read_bundle_json(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw InputError(path.string() +
                     ": cannot be opened; expected a bundle's folder, as scone bake makes it");
  }
  nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.value("format", nlohmann::json{}) != kBundleFormat) {
    throw InputError(path.string() + ": expected a JSON object with the format \"" + kBundleFormat +
                     "\"");
  }
  if (json.value("format_version", nlohmann::json{}) != kBundleVersion) {
    throw InputError(
        path.string() + ": expected format_version " + std::to_string(kBundleVersion) + ", found " +
        json.value("format_version", nlohmann::json{}).dump() +
        "; bake the checkpoint again, or read it by the version of scone that made it");
  }
  return json;
}

Description describe_table(const std::filesystem::path& path) {
  const nlohmann::json json = read_bundle_json(path);
  Description result;
  TableLayout& layout = result.layout;
  try {
    const nlohmann::json& table = json.at("table");
    if (table.is_null()) {
      throw InputError(path.string() + ": the bundle of a model without f-grams: it has no table");
    }
    layout.type = row_type_of(table.at("dtype").get<std::string>());
    layout.width = json_integer(table.at("width"));
    layout.rows = json_integer(table.at("rows"));
    const std::int64_t rows_per_file = json_integer(table.at("rows_per_file"));
    const nlohmann::json& fgrams = json.at("fgrams");
    layout.fgrams = fgrams.at("fingerprint").get<std::string>();
    result.max_length = json_integer(fgrams.at("max_length"));
    // Checks the range of width and rows.
    make_table_layout(layout.type, layout.width, layout.rows, kTableDataOffset, {});
    const auto expect = [&](const char* key, const nlohmann::json& found,
                            const nlohmann::json& expected) {
      if (found != expected) {
        throw InputError(path.string() + ": " + key + ": expected " + expected.dump() +
                         " by its other numbers, found " + found.dump());
      }
    };
    expect("fgrams.size", fgrams.at("size"), layout.rows);
    expect("table.record_bytes", table.at("record_bytes"), layout.bytes_of_record());
    expect("table.data_offset", table.at("data_offset"), kTableDataOffset);
    expect("table.index", table.at("index"), kIndexFile);
    if (rows_per_file < 1 || rows_per_file > kMostRowsPerFile) {
      throw InputError(path.string() + ": table.rows_per_file: expected 1.." +
                       std::to_string(kMostRowsPerFile) + ", found " +
                       std::to_string(rows_per_file));
    }
    layout.rows_per_file = rows_per_file;
  } catch (const nlohmann::json::exception& error) {
    throw InputError(path.string() + ": " + error.what());
  }
  return result;
}

void check_index(const TableIndexHeader& header, const Description& expected,
                 const std::filesystem::path& bundle) {
  const auto expect = [&](const char* key, const std::string& found, const std::string& wanted) {
    if (found != wanted) {
      throw InputError((bundle / kIndexFile).string() + ": " + key + ": expected " + wanted +
                       " as bundle.json says, found " + found +
                       "; the index belongs to another bundle: copy it again, or bake it");
    }
  };
  expect("rows", std::to_string(header.rows), std::to_string(expected.layout.rows));
  expect("fgrams", header.fgrams, expected.layout.fgrams);
  expect("max_length", std::to_string(header.max_length), std::to_string(expected.max_length));
}

}  // namespace

struct FgramTable::State {
  TableLayout layout;
  TableIndex index;
  std::string fallback;
  std::unique_ptr<RowSource> rows;
};

FgramTable::FgramTable(const std::filesystem::path& bundle, const RowSourceOptions& options) {
  const Description description = describe_table(bundle / "bundle.json");
  const TableLayout& layout = description.layout;
  for (std::int64_t file = 0; file < layout.files(); ++file) check_table_file(bundle, layout, file);
  TableIndex index(bundle / kIndexFile);
  check_index(index.header(), description, bundle);
  state_.reset(new State{layout, std::move(index), {}, nullptr});
  state_->rows = open_rows(bundle, layout, options, state_->fallback);
}
FgramTable::~FgramTable() = default;
FgramTable::FgramTable(FgramTable&&) noexcept = default;

const TableLayout& FgramTable::layout() const { return state_->layout; }
const TableIndex& FgramTable::index() const { return state_->index; }
TableAccess FgramTable::access() const { return state_->rows->access(); }
const std::string& FgramTable::fallback() const { return state_->fallback; }
const RowSource& FgramTable::records() const { return *state_->rows; }

void FgramTable::lookup(std::span<const std::int64_t> ids, std::span<float> out) const {
  const auto row = static_cast<std::size_t>(width());
  if (out.size() != ids.size() * row) {
    throw std::out_of_range("f-gram table lookup: expected room for " +
                            std::to_string(ids.size() * row) + " numbers, found " +
                            std::to_string(out.size()));
  }
  const RowType type = layout().type;
  state_->rows->read(ids, [&](std::size_t i, const std::byte* record) {
    decode_row(type, record, out.subspan(i * row, row));
  });
}

void FgramTable::read(std::span<const std::int64_t> ids, std::span<std::byte> out) const {
  const auto bytes = static_cast<std::size_t>(layout().bytes_of_record());
  if (out.size() != ids.size() * bytes) {
    throw std::out_of_range("f-gram table read: expected room for " +
                            std::to_string(ids.size() * bytes) + " bytes, found " +
                            std::to_string(out.size()));
  }
  state_->rows->read(ids, [&](std::size_t i, const std::byte* record) {
    std::memcpy(out.data() + i * bytes, record, bytes);
  });
}

}  // namespace scone
