#include "data/fgram_file.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <array>
#include <stdexcept>
#include <utility>

#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::int64_t format_version = 3;
constexpr std::size_t block_rows = 65'536;

struct Column {
  const char* name;
  hid_t type;
  std::size_t bytes;
};

std::array<Column, 4> columns_of(std::int64_t token_vocabulary_size) {
  const bool short_tokens = last_token_bytes(token_vocabulary_size) == 2;
  return {{{"/count", H5T_NATIVE_UINT64, 8},
           {"/prefix", H5T_NATIVE_UINT32, 4},
           {"/last_token", short_tokens ? H5T_NATIVE_UINT16 : H5T_NATIVE_UINT32,
            short_tokens ? std::size_t{2} : std::size_t{4}},
           {"/length", H5T_NATIVE_UINT8, 1}}};
}

/// Checksums of the columns, and the one of them that the file names.
class ColumnChecksums {
 public:
  ColumnChecksums() {
    for (auto& state : states_) {
      state.reset(XXH3_createState());
      XXH3_64bits_reset(state.get());
    }
  }
  void add(std::size_t column, const void* data, std::size_t bytes) {
    XXH3_64bits_update(states_[column].get(), data, bytes);
  }
  std::string text() const {
    std::array<std::uint64_t, 4> digests{};
    for (std::size_t i = 0; i < digests.size(); ++i)
      digests[i] = XXH3_64bits_digest(states_[i].get());
    return fmt::format("{:016x}", XXH3_64bits(digests.data(), sizeof(digests)));
  }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::array<std::unique_ptr<XXH3_state_t, Free>, 4> states_;
};

FgramHeader read_header(const Hdf5File& file, const std::string& path) {
  if (!file.has_attribute("format") || file.string_attribute("format") != "scone-fgrams") {
    throw InputError(fmt::format(
        "{}: expected the attribute format = \"scone-fgrams\", found {}; give a file of `scone "
        "fgrams`",
        path,
        file.has_attribute("format") ? "\"" + file.string_attribute("format") + "\"" : "none"));
  }
  if (const std::int64_t version = file.integer_attribute("format_version");
      version != format_version) {
    throw InputError(
        fmt::format("{}: format_version {} is not {}, the one known here; make the file again with "
                    "`scone fgrams`",
                    path, version, format_version));
  }
  FgramHeader header;
  header.size = file.integer_attribute("size");
  header.tokenizer_fingerprint = file.string_attribute("tokenizer_fingerprint");
  header.corpus_fingerprint = file.string_attribute("corpus_fingerprint");
  header.token_vocabulary_size = file.integer_attribute("vocabulary_size");
  header.corpus_tokens = file.integer_attribute("corpus_tokens");
  header.min_count = file.integer_attribute("min_count");
  const std::int64_t max_length = file.integer_attribute("max_length");
  if (max_length < 2 || max_length > longest_fgram) {
    throw InputError(fmt::format("{}: attribute max_length is {}, expected 2..{}", path, max_length,
                                 longest_fgram));
  }
  header.max_length = static_cast<int>(max_length);
  if (header.size < 1 || header.size >= std::int64_t{1} << 31U) {
    throw InputError(
        fmt::format("{}: attribute size is {}, expected less than 2^31", path, header.size));
  }
  return header;
}

}  // namespace

std::string fgram_fingerprint(const FgramColumns& columns, std::int64_t size, int max_length) {
  const auto count = static_cast<std::size_t>(size);
  std::uint64_t hash = XXH3_64bits_withSeed(columns.prefixes, count * sizeof(std::uint32_t),
                                            static_cast<std::uint64_t>(max_length));
  hash = XXH3_64bits_withSeed(columns.last_tokens, count * columns.token_bytes, hash);
  return fmt::format("{:016x}", hash);
}

FgramFile::FgramFile(const std::filesystem::path& path, std::int64_t wanted) : mapping_(path) {
  const Hdf5File file = Hdf5File::open(path);
  header_ = read_header(file, path.string());
  const std::int64_t size = header_.size;
  if (wanted < 0 || wanted > size) {
    throw InputError(fmt::format(
        "{}: the first {} f-grams were asked for, it holds {}; lower fgrams.size (--size, "
        "--fgrams-size), or make a larger file",
        path.string(), wanted, size));
  }
  const std::string checksum = file.string_attribute("checksum");
  const auto columns = columns_of(header_.token_vocabulary_size);
  std::array<const std::byte**, 4> views{&columns_.counts, &columns_.prefixes,
                                         &columns_.last_tokens, &columns_.lengths};
  columns_.token_bytes = last_token_bytes(header_.token_vocabulary_size);
  ColumnChecksums found;
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const auto& [name, type, bytes] = columns[i];
    if (!file.has_dataset(name)) {
      throw InputError(
          fmt::format("{}: dataset {} is missing; make the file again", path.string(), name));
    }
    if (const auto shape = file.dataset_shape(name); shape != std::vector<std::int64_t>{size}) {
      throw InputError(
          fmt::format("{}: dataset {} has shape [{}], expected [{}]; make the file again",
                      path.string(), name, fmt::join(shape, ", "), size));
    }
    const std::int64_t offset = file.dataset_offset(name);
    const std::size_t needed = static_cast<std::size_t>(size) * bytes;
    if (file.unsigned_element_bytes(name) != bytes || offset < 0 ||
        static_cast<std::size_t>(offset) > mapping_.all().size() ||
        mapping_.all().size() - static_cast<std::size_t>(offset) < needed) {
      throw InputError(
          fmt::format("{}: dataset {} is not {} contiguous unsigned little-endian numbers of {} "
                      "bytes; make the file again",
                      path.string(), name, size, bytes));
    }
    *views[i] = mapping_.data() + offset;
    if (wanted == 0 || wanted == size) found.add(i, *views[i], needed);
  }
  if ((wanted == 0 || wanted == size) && found.text() != checksum) {
    throw InputError(fmt::format(
        "{}: expected checksum {}, found {}: the f-grams were changed; make the file again",
        path.string(), checksum, found.text()));
  }
  if (wanted > 0) header_.size = wanted;
}

struct FgramFileWriter::Columns {
  std::vector<std::uint64_t> counts;
  std::vector<std::uint32_t> prefixes, long_tokens;
  std::vector<std::uint16_t> short_tokens;
  std::vector<std::uint8_t> lengths;
  ColumnChecksums checksums;
};

FgramFileWriter::FgramFileWriter(std::filesystem::path path, FgramHeader header)
    : path_(std::move(path)),
      partial_(path_),
      header_(std::move(header)),
      block_(std::make_unique<Columns>()),
      histogram_(static_cast<std::size_t>(header_.max_length) + 1, 0) {
  partial_ += ".partial";
  write([&] {
    file_ = std::make_unique<Hdf5File>(Hdf5File::create(partial_));
    for (const Column& column : columns_of(header_.token_vocabulary_size))
      file_->create_dataset(column.name, column.type, {header_.size});
  });
}

FgramFileWriter::~FgramFileWriter() {
  if (!file_) return;
  file_.reset();
  std::error_code ignored;
  std::filesystem::remove(partial_, ignored);
}

void FgramFileWriter::write(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::runtime_error& error) {
    std::error_code ignored;
    const auto folder = path_.has_parent_path() ? path_.parent_path() : ".";
    const auto space = std::filesystem::space(folder, ignored);
    file_.reset();
    std::filesystem::remove(partial_, ignored);
    throw InputError(fmt::format(
        "{}; the f-gram vocabulary needs {:.1f} MB, {:.1f} MB are free in {}; make room, or give "
        "another --output",
        error.what(),
        static_cast<double>(header_.size) *
            (13.0 + static_cast<double>(last_token_bytes(header_.token_vocabulary_size))) / 1e6,
        static_cast<double>(space.available) / 1e6, folder.string()));
  }
}

void FgramFileWriter::add(const FgramRow& row) {
  if (block_->counts.size() == block_rows) flush();
  block_->counts.push_back(row.count);
  block_->prefixes.push_back(row.prefix);
  if (last_token_bytes(header_.token_vocabulary_size) == 2) {
    block_->short_tokens.push_back(static_cast<std::uint16_t>(row.last_token));
  } else {
    block_->long_tokens.push_back(row.last_token);
  }
  block_->lengths.push_back(row.length);
  ++histogram_.at(row.length);
}

void FgramFileWriter::flush() {
  const auto rows = static_cast<std::int64_t>(block_->counts.size());
  const auto columns = columns_of(header_.token_vocabulary_size);
  const std::array<const void*, 4> data{block_->counts.data(), block_->prefixes.data(),
                                        columns[2].bytes == 2
                                            ? static_cast<const void*>(block_->short_tokens.data())
                                            : block_->long_tokens.data(),
                                        block_->lengths.data()};
  write([&] {
    for (std::size_t i = 0; i < columns.size(); ++i) {
      file_->write_part(columns[i].name, columns[i].type, written_, rows, data[i]);
      block_->checksums.add(i, data[i], static_cast<std::size_t>(rows) * columns[i].bytes);
    }
  });
  written_ += rows;
  block_->counts.clear();
  block_->prefixes.clear();
  block_->short_tokens.clear();
  block_->long_tokens.clear();
  block_->lengths.clear();
}

void FgramFileWriter::finish() {
  flush();
  if (written_ != header_.size) {
    throw std::logic_error(
        fmt::format("FgramFileWriter: {} rows of {} were added", written_, header_.size));
  }
  write([&] {
    file_->set_attribute("format", "scone-fgrams");
    file_->set_attribute("format_version", format_version);
    file_->set_attribute("tokenizer_fingerprint", header_.tokenizer_fingerprint);
    file_->set_attribute("vocabulary_size", header_.token_vocabulary_size);
    file_->set_attribute("size", header_.size);
    file_->set_attribute("max_length", std::int64_t{header_.max_length});
    file_->set_attribute("min_count", header_.min_count);
    file_->set_attribute("corpus_fingerprint", header_.corpus_fingerprint);
    file_->set_attribute("corpus_tokens", header_.corpus_tokens);
    file_->set_attribute("checksum", block_->checksums.text());
    file_->write("/length_histogram", H5T_NATIVE_UINT64,
                 {static_cast<std::int64_t>(histogram_.size())}, histogram_.data());
    file_->close();
    std::filesystem::rename(partial_, path_);
  });
  file_.reset();
}

}  // namespace scone
