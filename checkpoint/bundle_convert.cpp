#include "checkpoint/bundle_convert.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <future>
#include <memory>
#include <numeric>
#include <string>
#include <system_error>
#include <vector>

#include "checkpoint/bake_journal.h"
#include "checkpoint/bundle.h"
#include "checkpoint/bundle_target.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/file_checksum.h"
#include "checkpoint/table/raw_file.h"
#include "checkpoint/table_files.h"
#include "checkpoint/unfinished_folder.h"
#include "data/fgram_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kBlockBytes = std::int64_t{8} << 20;  // of the wider of the two records
constexpr std::int64_t kMostIndexBytes = 8;                  // of an f-gram, on disk

/// The f-grams of the new table.
struct NewFgrams {
  TableIndexHeader header;
  std::vector<TableKey> keys;  // empty: all of the source's, whose index is taken as it is
};

/// What FgramVocabulary::fingerprint() says of a vocabulary of these keys, all of them used.
std::string fingerprint_of(const std::vector<TableKey>& keys, std::int64_t token_vocabulary_size,
                           int max_length) {
  std::vector<std::uint32_t> prefixes, long_tokens;
  std::vector<std::uint16_t> short_tokens;
  const bool is_short = last_token_bytes(token_vocabulary_size) == 2;
  prefixes.reserve(keys.size());
  (is_short ? short_tokens.reserve(keys.size()) : long_tokens.reserve(keys.size()));
  for (const TableKey& key : keys) {
    prefixes.push_back(static_cast<std::uint32_t>(
        key.prefix < 0 ? -1 - key.prefix : token_vocabulary_size + key.prefix));
    if (is_short) {
      short_tokens.push_back(static_cast<std::uint16_t>(key.last_token));
    } else {
      long_tokens.push_back(static_cast<std::uint32_t>(key.last_token));
    }
  }
  FgramColumns columns;
  columns.prefixes = std::as_bytes(std::span(prefixes)).data();
  columns.token_bytes = is_short ? 2 : 4;
  columns.last_tokens = is_short ? std::as_bytes(std::span(short_tokens)).data()
                                 : std::as_bytes(std::span(long_tokens)).data();
  return fgram_fingerprint(columns, static_cast<std::int64_t>(keys.size()), max_length);
}

int longest_of(const std::vector<TableKey>& keys) {
  std::vector<std::uint8_t> length(keys.size());
  std::uint8_t longest = 0;
  for (std::size_t id = 0; id < keys.size(); ++id) {
    const std::int64_t prefix = keys[id].prefix;
    length[id] =
        static_cast<std::uint8_t>(prefix < 0 ? 2 : length[static_cast<std::size_t>(prefix)] + 1);
    longest = std::max(longest, length[id]);
  }
  return longest;
}

NewFgrams first_fgrams(const Bundle& source, std::int64_t rows) {
  const TableIndex& index = source.table->index();
  const TableIndexHeader& header = index.header();
  if (rows < 0 || rows > header.rows) {
    throw InputError(
        fmt::format("--size {}: {} holds {} f-grams; give at most that, or bake more of them", rows,
                    source.folder.string(), header.rows));
  }
  if (rows == 0 || rows == header.rows) return {header, {}};
  NewFgrams first{header, index.keys()};
  first.keys.resize(static_cast<std::size_t>(rows));
  first.keys.shrink_to_fit();
  const auto unused = std::count_if(first.keys.begin(), first.keys.end(),
                                    [](const auto& key) { return !key.used; });
  if (unused > 0) {
    throw InputError(fmt::format(
        "--size {}: {} of these f-grams are longer than the {} tokens that {} looks up, and its "
        "index does not hold their keys, which the fingerprint of the first {} covers; bake them "
        "with --fgrams-size {} instead",
        rows, unused, header.max_length, source.folder.string(), rows, rows));
  }
  first.header.rows = rows;
  first.header.unused = 0;
  first.header.max_length = longest_of(first.keys);
  first.header.fgrams =
      fingerprint_of(first.keys, header.token_vocabulary_size, first.header.max_length);
  return first;
}

/// Records of one type as another's.
class RecordConversion {
 public:
  RecordConversion(const TableLayout& from, const TableLayout& to, const fs::path& source)
      : from_(from), to_(to), source_(source) {}

  /// records: of the rows first, ..; out: resized to as many.
  void run(std::int64_t first, std::span<const std::byte> records,
           std::vector<std::byte>& out) const {
    if (from_.type == to_.type) {
      out.assign(records.begin(), records.end());
      return;
    }
    const auto from_bytes = static_cast<std::size_t>(from_.bytes_of_record());
    const auto to_bytes = static_cast<std::size_t>(to_.bytes_of_record());
    const std::size_t count = records.size() / from_bytes;
    out.assign(count * to_bytes, std::byte{0});
    std::atomic<std::int64_t> not_finite{-1};
#pragma omp parallel
    {
      std::vector<float> row(static_cast<std::size_t>(to_.width));
#pragma omp for schedule(static)
      for (std::size_t i = 0; i < count; ++i) {
        decode_row(from_.type, records.data() + i * from_bytes, row);
        if (!std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); }))
          not_finite = first + static_cast<std::int64_t>(i);
        encode_row(to_.type, row, out.data() + i * to_bytes);
      }
    }
    if (not_finite >= 0) {
      throw InputError(fmt::format(
          "{}: the row of f-gram {} in {} is not finite, so it is not rounded to {}; convert a "
          "bundle of another type, or bake",
          source_.string(), not_finite.load(), name_of(from_.type), name_of(to_.type)));
    }
  }

 private:
  const TableLayout& from_;
  const TableLayout& to_;
  const fs::path& source_;
};

/// The rows of a bundle in their order, each file's checksum compared at its end.
class SourceRows {
 public:
  explicit SourceRows(const Bundle& bundle) : bundle_(bundle), layout_(bundle.table->layout()) {}

  void read(std::int64_t first, std::span<std::byte> records) {
    const std::int64_t file = first / layout_.rows_per_file;
    if (file != file_number_) open(file);
    file_->read(offset_, records);
    checksum_->add(records);
    offset_ += static_cast<std::int64_t>(records.size());
  }
  /// After the last read of a file: what is left of it is read too. Throws InputError where it was
  /// changed.
  void finish_file() {
    checksum_->add_file(file_->path(), offset_, layout_.bytes_of_file(file_number_) - offset_);
    const auto& listed = bundle_.description.at("files").at(table_file_name(file_number_));
    const auto expected = listed.at("xxh3").get<std::string>();
    if (checksum_->hex() != expected) {
      throw InputError(fmt::format(
          "{}: expected checksum {}, found {} (content changed); copy the bundle again, or bake it",
          file_->path().string(), expected, checksum_->hex()));
    }
  }

 private:
  void open(std::int64_t file) {
    file_ = std::make_unique<RawFile>(bundle_.folder / table_file_name(file), O_RDONLY);
    checksum_ = std::make_unique<StreamingChecksum>();
    checksum_->add_file(file_->path(), 0, kTableDataOffset);
    file_number_ = file;
    offset_ = kTableDataOffset;
  }

  const Bundle& bundle_;
  const TableLayout& layout_;
  std::unique_ptr<RawFile> file_;
  std::unique_ptr<StreamingChecksum> checksum_;
  std::int64_t file_number_ = -1, offset_ = 0;
};

/// Row files that are written in the order of their rows, and described meanwhile.
class TargetRows {
 public:
  TargetRows(const fs::path& folder, const TableLayout& layout)
      : layout_(layout), files_(folder, layout) {}

  void write(std::int64_t first, std::span<const std::byte> records) {
    const std::int64_t file = first / layout_.rows_per_file;
    if (first % layout_.rows_per_file == 0) {
      checksum_ = std::make_unique<StreamingChecksum>();
      const std::string header = table_file_header(layout_, file);
      checksum_->add(std::as_bytes(std::span(header)));
    }
    checksum_->add(records);
    ids_.resize(records.size() / static_cast<std::size_t>(layout_.bytes_of_record()));
    std::iota(ids_.begin(), ids_.end(), first);
    files_.write(ids_, records);
    if (ids_.back() + 1 == file * layout_.rows_per_file + layout_.rows_of_file(file)) {
      description_[table_file_name(file)] = {{"bytes", layout_.bytes_of_file(file)},
                                             {"xxh3", checksum_->hex()}};
    }
  }
  /// Of all files, when they are on disk: their entries of bundle.json's "files".
  nlohmann::json finish() {
    files_.sync();
    return description_;
  }

 private:
  const TableLayout& layout_;
  TableFiles files_;
  std::unique_ptr<StreamingChecksum> checksum_;
  std::vector<std::int64_t> ids_;
  nlohmann::json description_ = nlohmann::json::object();
};

/// Rows of a file from row `first` on.
std::int64_t rows_to_file_end(const TableLayout& layout, std::int64_t first) {
  return layout.rows_per_file - first % layout.rows_per_file;
}

nlohmann::json convert_rows(const Bundle& source, const TableLayout& to, const fs::path& folder,
                            const BakeProgressReport& report) {
  const auto started = std::chrono::steady_clock::now();
  const TableLayout& from = source.table->layout();
  TableFiles::create(folder, to);
  SourceRows rows(source);
  TargetRows target(folder, to);
  const RecordConversion conversion(from, to, source.folder);
  const std::int64_t block_rows = std::max<std::int64_t>(
      1, kBlockBytes / std::max(from.bytes_of_record(), to.bytes_of_record()));
  BakeProgress progress;
  progress.rows_total = to.rows;
  std::vector<std::byte> read, converted, written;
  std::future<void> writing;  // of the block before; declared last, so that it ends first
  for (std::int64_t first = 0, count = 0; first < to.rows; first += count) {
    // A block lies in one file of each table.
    count = std::min(
        {block_rows, to.rows - first, rows_to_file_end(from, first), rows_to_file_end(to, first)});
    read.resize(static_cast<std::size_t>(count * from.bytes_of_record()));
    rows.read(first, read);
    if (first + count == to.rows || count == rows_to_file_end(from, first)) rows.finish_file();
    conversion.run(first, read, converted);
    if (writing.valid()) writing.get();
    std::swap(converted, written);
    writing = std::async(std::launch::async, [&, first] { target.write(first, written); });
    progress.rows_done += count;
    progress.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    if (report) report(progress);
  }
  if (writing.valid()) writing.get();
  return target.finish();
}

/// The entries of these files in a description, as a list for file_problems.
nlohmann::json entries_of(const nlohmann::json& files, const std::vector<std::string>& names) {
  nlohmann::json entries = nlohmann::json::object();
  for (const std::string& name : names) entries[name] = files.at(name);
  return entries;
}

void require_whole(const fs::path& folder, const nlohmann::json& files) {
  const auto problems = file_problems(folder, files, /*checksums=*/true);
  if (!problems.empty()) {
    throw InputError(
        fmt::format("{}; copy the bundle again, or bake it", fmt::join(problems, "; ")));
  }
}

/// The files beside the table, which a conversion copies.
std::vector<std::string> copied_files(const Bundle& source) {
  return {source.description.at("tokenizer").at("file").get<std::string>(), kBundleModelFile};
}

void check_source(const fs::path& source, const BundleTarget& target) {
  std::error_code ignored;
  for (const fs::path& removed : {target.temporary, target.aside}) {
    for (fs::path up = fs::weakly_canonical(source);; up = up.parent_path()) {
      if (fs::equivalent(up, removed, ignored)) {
        throw InputError(fmt::format("{}: lies in {}, which making {} removes; give another --out",
                                     source.string(), removed.string(), target.bundle.string()));
      }
      if (up == up.parent_path()) break;
    }
  }
  if (BakeJournal::exists(target.temporary)) {
    throw InputError(fmt::format(
        "{}: holds an unfinished bake; finish it or remove the folder, or give another --out",
        target.temporary.string()));
  }
}

/// Fills the temporary folder. Returns the index' bytes.
std::int64_t make_bundle(const Bundle& source, const NewFgrams& fgrams, const TableLayout& layout,
                         const fs::path& folder, const BakeProgressReport& report) {
  std::vector<std::string> copied = copied_files(source);
  const bool whole = fgrams.keys.empty();
  if (whole) copied.emplace_back(kTableIndexFile);
  const nlohmann::json& listed = source.description.at("files");
  std::int64_t needed = layout.bytes() + (whole ? 0 : kMostIndexBytes * layout.rows);
  for (const std::string& name : copied) needed += file_bytes(source.folder / name);
  require_free_space(folder, needed);

  fs::create_directories(folder / "table");
  for (const std::string& name : copied) {
    fs::copy_file(source.folder / name, folder / name);
    sync_path(folder / name);
  }
  nlohmann::json files = entries_of(listed, copied);
  require_whole(folder, files);
  if (!whole) {
    require_whole(source.folder, entries_of(listed, {kTableIndexFile}));
    TableIndex::write(folder / kTableIndexFile, fgrams.header,
                      [&](std::int64_t id) { return fgrams.keys[static_cast<std::size_t>(id)]; });
    files.update(describe_files(folder, {kTableIndexFile}));
  }
  files.update(convert_rows(source, layout, folder, report));
  sync_path(folder / "table");

  nlohmann::json description = source.description;
  description["fgrams"] = {{"size", fgrams.header.rows},
                           {"max_length", fgrams.header.max_length},
                           {"fingerprint", fgrams.header.fgrams}};
  description["table"] = describe_table(layout);
  description["files"] = files;
  write_text_durably(folder / "bundle.json", description.dump(2) + "\n");
  sync_path(folder);
  return file_bytes(folder / kTableIndexFile);
}

}  // namespace

ConvertResult convert_bundle(const ConvertOptions& options, const BakeProgressReport& report) {
  const auto started = std::chrono::steady_clock::now();
  const BundleTarget target(options.bundle);
  target.check(options.overwrite);
  check_source(options.source, target);
  const Bundle source = open_bundle(options.source);
  if (!source.table) {
    throw InputError(fmt::format("{}: the bundle of a baseline: it has no table to convert",
                                 options.source.string()));
  }
  const TableLayout& from = source.table->layout();
  const NewFgrams fgrams = first_fgrams(source, options.rows);
  const TableLayout to =
      make_table_layout(options.type.value_or(from.type), from.width, fgrams.header.rows,
                        options.file_bytes, fgrams.header.fgrams);
  ConvertResult result;
  result.source_type = from.type;
  result.type = to.type;
  result.source_rows = from.rows;
  result.rows = to.rows;
  result.width = to.width;
  result.table_bytes = to.bytes();
  const UnfinishedFolder folder(target.temporary);
  try {
    target.check(options.overwrite);  // again: another may have ended meanwhile
    folder.clear();
    result.index_bytes = make_bundle(source, fgrams, to, folder.path(), report);
    folder.publish(target.bundle, target.aside);
  } catch (...) {
    folder.remove();
    throw;
  }
  result.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return result;
}

}  // namespace scone
