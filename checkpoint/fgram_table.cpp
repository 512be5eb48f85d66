#include "checkpoint/fgram_table.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "checkpoint/file_checksum.h"
#include "data/json_integer.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr const char* kFormat = "scone-fgram-table";
// Beyond any table; their product does not overflow.
constexpr std::int64_t kMostRows = std::int64_t{1} << 40;
constexpr std::int64_t kMostTableWidth = std::int64_t{1} << 20;
constexpr std::size_t kPrefetchRows = 4;
constexpr std::size_t kPrefetchBytes = 256;  // the processor's own prefetcher follows from there

}  // namespace

std::int64_t TableLayout::file_bytes() const { return kTableDataOffset + rows * bytes_of_record(); }

std::string table_header(const TableLayout& layout) {
  const nlohmann::json json = {{"format", kFormat},
                               {"format_version", 1},
                               {"dtype", name_of(layout.type)},
                               {"width", layout.width},
                               {"rows", layout.rows},
                               {"record_bytes", layout.bytes_of_record()},
                               {"data_offset", kTableDataOffset}};
  std::string page = json.dump();
  page.resize(static_cast<std::size_t>(kTableDataOffset) - 1, ' ');
  return page + "\n";
}

TableLayout read_table_layout(const std::filesystem::path& path) {
  const std::int64_t bytes = file_bytes(path);
  std::string page(static_cast<std::size_t>(kTableDataOffset), '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(page.data(), kTableDataOffset)) {
    throw InputError(fmt::format("{}: truncated: an f-gram table has at least {} bytes, found {}",
                                 path.string(), kTableDataOffset, bytes));
  }
  TableLayout layout;
  try {
    const nlohmann::json json = nlohmann::json::parse(page);
    if (json.at("format").get<std::string>() != kFormat || json.at("format_version") != 1 ||
        json.at("data_offset") != kTableDataOffset) {
      throw InputError(fmt::format("{}: expected the format \"{}\", version 1, found {}",
                                   path.string(), kFormat, json.dump()));
    }
    layout.type = row_type_of(json.at("dtype").get<std::string>());
    layout.width = json_integer(json.at("width"));
    layout.rows = json_integer(json.at("rows"));
  } catch (const nlohmann::json::exception& error) {
    throw InputError(
        fmt::format("{}: not an f-gram table: its first page: {}", path.string(), error.what()));
  }
  if (layout.width < 1 || layout.width > kMostTableWidth || layout.rows < 0 ||
      layout.rows > kMostRows) {
    throw InputError(fmt::format("{}: expected a width of 1..{} and 0..{} rows, found {} and {}",
                                 path.string(), kMostTableWidth, kMostRows, layout.width,
                                 layout.rows));
  }
  if (layout.file_bytes() != bytes) {
    throw InputError(fmt::format("{}: expected {} bytes for {} rows of width {} ({}), found {}{}",
                                 path.string(), layout.file_bytes(), layout.rows, layout.width,
                                 name_of(layout.type), bytes,
                                 bytes < layout.file_bytes() ? " (truncated)" : ""));
  }
  return layout;
}

struct FgramTable::State {
  TableLayout layout;
  std::size_t mapped_bytes = 0;
  void* mapping = MAP_FAILED;

  ~State() {
    if (mapping != MAP_FAILED) ::munmap(mapping, mapped_bytes);
  }
  const std::byte* record(std::int64_t id) const {
    return static_cast<const std::byte*>(mapping) + kTableDataOffset +
           id * layout.bytes_of_record();
  }
};

FgramTable::FgramTable(const std::filesystem::path& bundle, const nlohmann::json& description)
    : state_(std::make_unique<State>()) {
  std::filesystem::path path = bundle;
  TableLayout expected;
  try {
    const auto& files = description.at("files");
    if (files.size() != 1) {
      throw InputError(fmt::format("{}: table.files: expected 1 file, found {}",
                                   (bundle / "bundle.json").string(), files.size()));
    }
    path /= files.at(0).at("name").get<std::string>();
    expected.type = row_type_of(description.at("dtype").get<std::string>());
    expected.width = json_integer(description.at("width"));
    expected.rows = json_integer(description.at("rows"));
  } catch (const nlohmann::json::exception& error) {
    throw InputError(
        fmt::format("{}: key \"table\": {}", (bundle / "bundle.json").string(), error.what()));
  }
  State& state = *state_;
  state.layout = read_table_layout(path);
  if (state.layout.type != expected.type || state.layout.width != expected.width ||
      state.layout.rows != expected.rows) {
    throw InputError(fmt::format(
        "{}: expected {} rows of width {} ({}) as bundle.json says, found {} of width {} ({})",
        path.string(), expected.rows, expected.width, name_of(expected.type), state.layout.rows,
        state.layout.width, name_of(state.layout.type)));
  }
  state.mapped_bytes = static_cast<std::size_t>(state.layout.file_bytes());
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw InputError(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
  }
  state.mapping = ::mmap(nullptr, state.mapped_bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  const int error = errno;
  ::close(descriptor);
  if (state.mapping == MAP_FAILED) {
    throw std::runtime_error(
        fmt::format("{}: cannot be mapped: {}", path.string(), std::strerror(error)));
  }
  ::madvise(state.mapping, state.mapped_bytes, MADV_RANDOM);  // advice only: no error matters
}

FgramTable::~FgramTable() = default;

std::int64_t FgramTable::rows() const { return state_->layout.rows; }
std::int64_t FgramTable::width() const { return state_->layout.width; }
RowType FgramTable::type() const { return state_->layout.type; }

void FgramTable::lookup(std::span<const std::int64_t> ids, const Tensor& out) const {
  const State& state = *state_;
  const std::int64_t count = static_cast<std::int64_t>(ids.size());
  const std::int64_t width = state.layout.width;
  if (count == 0) return;
  if (out.shape() != Shape{count, width}) {
    throw std::out_of_range(fmt::format("f-gram table lookup: expected out [{}, {}], found {}",
                                        count, width, describe(out)));
  }
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= state.layout.rows) {
      throw std::out_of_range(
          fmt::format("f-gram id {} is not in 0..{}", id, state.layout.rows - 1));
    }
  }
  float* values = out.data<float>();
  const std::size_t stored = static_cast<std::size_t>(width * bytes_of(state.layout.type));
#pragma omp parallel for schedule(static) if (count >= 64)
  for (std::int64_t i = 0; i < count; ++i) {
    const auto index = static_cast<std::size_t>(i);
    if (index + kPrefetchRows < ids.size()) {
      const std::byte* ahead = state.record(ids[index + kPrefetchRows]);
      for (std::size_t byte = 0; byte < std::min(stored, kPrefetchBytes); byte += 64) {
        __builtin_prefetch(ahead + byte);
      }
    }
    decode_row(state.layout.type, state.record(ids[index]),
               {values + i * width, static_cast<std::size_t>(width)});
  }
}

}  // namespace scone
