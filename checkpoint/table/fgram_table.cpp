#include "checkpoint/table/fgram_table.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "checkpoint/table/bundle_file.h"
#include "parallel/error.h"
#include "parallel/json_field.h"

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

RowType read_row_type(const JsonField& field) {
  const std::string& name = field.text();
  try {
    return row_type_of(name);
  } catch (const InputError&) {
    field.reject("fp32, bf16, fp16 or int8");
  }
}

Description describe_table(const std::filesystem::path& bundle) {
  const std::string source = (bundle / "bundle.json").string();
  const nlohmann::json json = parse_json_strictly(read_bundle_text(bundle), source);
  const JsonField root(json, source);
  root["format"].expect(kBundleFormat, "");
  root["format_version"].expect(
      kBundleVersion,
      " (bake the checkpoint again, or read it by the version of scone that made it)");
  const JsonField table = root["table"];
  if (table.is_null()) {
    throw InputError(source + ": the bundle of a model without f-grams: it has no table");
  }
  const JsonField fgrams = root["fgrams"];
  Description result;
  TableLayout& layout = result.layout;
  layout.type = read_row_type(table["dtype"]);
  layout.width = table["width"].integer(1, kMostTableWidth);
  layout.rows = table["rows"].integer(0, kMostTableRows);
  layout.rows_per_file = table["rows_per_file"].integer(1, kMostRowsPerFile);
  layout.fgrams = fgrams["fingerprint"].text();
  result.max_length = fgrams["max_length"].integer(0, INT64_MAX);
  const std::string why = " by its other numbers";
  fgrams["size"].expect(layout.rows, why);
  table["record_bytes"].expect(layout.bytes_of_record(), why);
  table["data_offset"].expect(kTableDataOffset, "");
  table["index"].expect(kIndexFile, "");
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
  const Description description = describe_table(bundle);
  const TableLayout& layout = description.layout;
  for (std::int64_t file = 0; file < layout.files(); ++file) {
    bundle_file(bundle, table_file_name(file));
    check_table_file(bundle, layout, file);
  }
  TableIndex index(bundle_file(bundle, kIndexFile));
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
