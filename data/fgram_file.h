#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/hdf5_file.h"
#include "data/mapped_file.h"

namespace scone {

/// What a file of f-grams says of itself.
struct FgramHeader {
  std::string tokenizer_fingerprint, corpus_fingerprint;
  std::int64_t token_vocabulary_size = 0, corpus_tokens = 0, min_count = 0;
  std::int64_t size = 0;
  int max_length = 0;  // K that it was built with; the longest f-gram may be shorter
};

/// An f-gram as the file has it. prefix: below the token vocabulary's size a token (of a 2-gram),
/// else that size + the id of the prefix.
struct FgramRow {
  std::uint32_t prefix, last_token;
  std::uint8_t length;
  std::uint64_t count;
};

constexpr int longest_fgram = 255;  // /length is one byte
/// Larger token vocabularies are refused.
constexpr std::int64_t largest_token_vocabulary = std::int64_t{1} << 22U;

/// Bytes of a number of /last_token.
inline std::size_t last_token_bytes(std::int64_t token_vocabulary_size) {
  return token_vocabulary_size <= 65'536 ? 2 : 4;
}

/// Views of the columns, [size] each; they need not be aligned.
struct FgramColumns {
  const std::byte *prefixes = nullptr, *last_tokens = nullptr, *lengths = nullptr,
                  *counts = nullptr;
  std::size_t token_bytes = 2;

  std::uint32_t prefix(std::size_t id) const { return load<std::uint32_t>(prefixes, id); }
  std::uint32_t last_token(std::size_t id) const {
    return token_bytes == 2 ? load<std::uint16_t>(last_tokens, id)
                            : load<std::uint32_t>(last_tokens, id);
  }
  int length(std::size_t id) const { return load<std::uint8_t>(lengths, id); }
  std::uint64_t count(std::size_t id) const { return load<std::uint64_t>(counts, id); }

 private:
  template <class T>
  static T load(const std::byte* column, std::size_t at) {
    T value;
    std::memcpy(&value, column + at * sizeof(T), sizeof(T));
    return value;
  }
};

/// 16 hex digits of the keys of the first `size` f-grams, in the order of their ids, and of K
/// (max_length), the longest that is used. Reads prefixes and last tokens alone.
std::string fgram_fingerprint(const FgramColumns& columns, std::int64_t size, int max_length);

/// A file of f-grams, its columns mapped into memory.
class FgramFile {
 public:
  /// wanted: of the first f-grams, how many are used; 0: all. Throws InputError: a foreign,
  /// damaged or truncated file, more wanted than it holds. The checksum is compared where all are
  /// used.
  FgramFile(const std::filesystem::path& path, std::int64_t wanted);
  const FgramHeader& header() const { return header_; }  // its size: those used
  const FgramColumns& columns() const { return columns_; }

 private:
  FgramHeader header_;
  FgramColumns columns_;
  MappedFile mapping_;
};

/// Writes a file of f-grams row by row, under a temporary name until it is whole. The bytes depend
/// on header and rows alone. Throws InputError where writing fails, as on a full disk, with the
/// space needed and free.
class FgramFileWriter {
 public:
  FgramFileWriter(std::filesystem::path path, FgramHeader header);
  /// Removes the unfinished file.
  ~FgramFileWriter();
  FgramFileWriter(const FgramFileWriter&) = delete;

  /// The next row, header.size in all.
  void add(const FgramRow& row);
  void finish();

 private:
  struct Columns;
  void flush();
  void write(const std::function<void()>& action);

  std::filesystem::path path_, partial_;
  FgramHeader header_;
  std::unique_ptr<Columns> block_;
  std::vector<std::uint64_t> histogram_;
  std::int64_t written_ = 0;
  std::unique_ptr<Hdf5File> file_;
};

}  // namespace scone
