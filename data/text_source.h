#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/compressed_file.h"
#include "data/utf8.h"

namespace scone {

/// What has been read since the source was made.
struct TextCounts {
  std::int64_t documents = 0;
  std::int64_t text_bytes = 0;         // of the documents as handed out
  std::int64_t invalid_sequences = 0;  // ill-formed UTF-8, replaced or kept
  std::int64_t empty_documents = 0;    // left out: empty files of a folder, JSONL lines with ""
};

/// A part of a text source that can be read by itself: files, or the JSON lines of one file that
/// begin in a range of its bytes.
struct TextPiece {
  std::size_t first_file = 0, last_file = 0;  // exclusive
  std::int64_t begin = 0, end = -1;           // of the one file; -1: its end
  std::int64_t bytes = 0;                     // as they lie on the disk
  bool is_long = false;  // a compressed file, or one document, that can be no smaller
};

/// Documents of text files, one after another. A file named .jsonl, .ndjson or .json holds one
/// document a line, in the field `text`; any other file is one document. Each may be gzip or
/// Zstandard (told apart by content, the endings .gz and .zst are looked through). A folder stands
/// for its files at any depth, hidden ones left out, in the order of their paths' bytes. A UTF-8
/// byte order mark in front of a file is dropped. One document is in memory at a time.
class TextSource {
 public:
  /// Throws InputError: no input, none such, a folder without files, a file given by name is empty.
  TextSource(const std::vector<std::filesystem::path>& inputs, InvalidUtf8 policy);
  ~TextSource();

  /// Cuts the source into pieces of about piece_bytes, in their order: documents of all pieces, one
  /// piece after another, are the source's. Depends on the files and piece_bytes alone.
  std::vector<TextPiece> pieces(std::int64_t piece_bytes) const;
  /// A source of a piece's documents alone, which may be used beside this one by another thread.
  TextSource piece(const TextPiece& piece) const;
  TextSource(TextSource&&) noexcept;

  /// The next document, never empty; false at the end. Throws InputError, naming the file and the
  /// line or byte: binary content (NUL bytes), damaged compression, a JSONL line that is no object
  /// with a string `text`, ill-formed UTF-8 under InvalidUtf8::error (and under keep in JSONL,
  /// which is UTF-8 by definition).
  bool next(std::string& document);

  const std::vector<std::filesystem::path>& files() const { return files_; }
  const TextCounts& counts() const { return counts_; }
  /// Share of the files' bytes that has been read, 0..1.
  double progress() const;

 private:
  explicit TextSource(InvalidUtf8 policy);
  /// "FILE:LINE" of the line that begins at line_offset_ and was counted last.
  std::string line_place(std::int64_t offset) const;
  bool next_in_file(std::string& document);
  bool next_plain(std::string& document);
  bool next_json_line(std::string& document);
  bool read_line(std::string& line);
  void open_file();
  void close_file();
  std::int64_t apply_policy(std::string& text, std::int64_t offset,
                            const std::function<std::string()>& place) const;

  std::vector<std::filesystem::path> files_;
  std::vector<bool> named_;  // of files_: given by name, not found in a folder
  InvalidUtf8 policy_;
  std::int64_t begin_ = 0, end_ = -1;  // of the lines of a piece of one file
  std::int64_t total_bytes_ = 0;       // of the files as they lie on the disk
  TextCounts counts_;

  // The file being read.
  std::size_t file_index_ = 0;
  std::unique_ptr<CompressedFile> file_;
  std::int64_t bytes_before_file_ = 0;
  bool json_lines_ = false, plain_done_ = false;
  std::int64_t line_number_ = 0;
  std::int64_t line_offset_ = 0;  // of the decompressed content
  std::vector<char> buffer_;
  std::size_t buffer_begin_ = 0, buffer_end_ = 0;
};

}  // namespace scone
