#include "data/text_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t buffer_bytes = 1 << 20;
constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";

bool holds_json_lines(fs::path path) {
  if (path.extension() == ".gz" || path.extension() == ".zst") path = path.stem();
  const std::string extension = path.extension().string();
  return extension == ".jsonl" || extension == ".ndjson" || extension == ".json";
}

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

/// Regular files of the folder at any depth, links followed, ordered by their paths' bytes.
std::vector<fs::path> files_of_folder(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  const auto links = fs::directory_options::follow_directory_symlink;
  for (auto at = fs::recursive_directory_iterator(folder, links, error);
       !error && at != fs::end(at); at.increment(error)) {
    std::error_code of_entry;
    const fs::file_type type = at->status(of_entry).type();
    if (is_hidden(at->path())) {
      if (type == fs::file_type::directory) at.disable_recursion_pending();
    } else if (type == fs::file_type::regular) {
      files.push_back(at->path());
    } else if (type == fs::file_type::not_found) {
      throw InputError(
          fmt::format("--input {}: {}: a link to what is not there; remove it, or mend it",
                      folder.string(), at->path().string()));
    } else if (of_entry) {
      error = of_entry;
      break;
    }
  }
  if (error) {
    throw InputError(
        fmt::format("--input {}: the folder cannot be read: {}", folder.string(), error.message()));
  }
  if (files.empty()) {
    throw InputError(fmt::format(
        "--input {}: expected a folder with text files, found none in it (hidden ones left out)",
        folder.string()));
  }
  std::sort(files.begin(), files.end(),
            [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  return files;
}

void drop_byte_order_mark(std::string& text) {
  if (text.starts_with(byte_order_mark)) text.erase(0, byte_order_mark.size());
}

void refuse_binary(std::string_view text, std::int64_t offset, const std::string& place) {
  const std::size_t nul = text.find('\0');
  if (nul == std::string_view::npos) return;
  throw InputError(
      fmt::format("{}: expected text, found a NUL byte at byte {}: a binary file, or UTF-16 text; "
                  "leave it out, "
                  "or convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
                  place, offset + static_cast<std::int64_t>(nul)));
}

}  // namespace

TextSource::TextSource(const std::vector<fs::path>& inputs, InvalidUtf8 policy)
    : policy_(policy), buffer_(buffer_bytes) {
  if (inputs.empty()) throw InputError("--input: expected files or folders, found none");
  for (const fs::path& input : inputs) {
    std::error_code error;
    if (fs::is_directory(input, error)) {
      for (fs::path& file : files_of_folder(input)) {
        files_.push_back(std::move(file));
        named_.push_back(false);
      }
    } else if (fs::is_regular_file(input, error)) {
      files_.push_back(input);
      named_.push_back(true);
    } else {
      throw InputError(fmt::format("--input {}: {}", input.string(),
                                   fs::exists(input, error)
                                       ? "expected a file or folder, found something else"
                                       : "no such file or folder"));
    }
  }
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const auto bytes = static_cast<std::int64_t>(fs::file_size(files_[i]));
    if (bytes == 0 && named_[i]) {
      throw InputError(fmt::format("--input {}: expected text, found an empty file; leave it out",
                                   files_[i].string()));
    }
    total_bytes_ += bytes;
  }
}

TextSource::TextSource(InvalidUtf8 policy) : policy_(policy), buffer_(buffer_bytes) {}
TextSource::TextSource(TextSource&&) noexcept = default;
TextSource::~TextSource() = default;

std::vector<TextPiece> TextSource::pieces(std::int64_t piece_bytes) const {
  std::vector<TextPiece> pieces;
  TextPiece small;  // files that are gathered
  const auto close_small = [&] {
    if (small.last_file > small.first_file) pieces.push_back(small);
  };
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const auto bytes = static_cast<std::int64_t>(fs::file_size(files_[i]));
    if (bytes > piece_bytes) {
      close_small();
      small = {.first_file = i + 1, .last_file = i + 1};
      if (!holds_json_lines(files_[i]) || CompressedFile(files_[i]).is_compressed()) {
        pieces.push_back({.first_file = i, .last_file = i + 1, .bytes = bytes, .is_long = true});
        continue;
      }
      for (std::int64_t begin = 0; begin < bytes; begin += piece_bytes) {
        const std::int64_t end = std::min(bytes, begin + piece_bytes);
        pieces.push_back({.first_file = i,
                          .last_file = i + 1,
                          .begin = begin,
                          .end = end,
                          .bytes = end - begin});
      }
      continue;
    }
    if (small.bytes + bytes > piece_bytes) {
      close_small();
      small = {.first_file = i, .last_file = i};
    }
    small.last_file = i + 1;
    small.bytes += bytes;
  }
  close_small();
  return pieces;
}

TextSource TextSource::piece(const TextPiece& piece) const {
  TextSource source(policy_);
  for (std::size_t i = piece.first_file; i < piece.last_file; ++i) {
    source.files_.push_back(files_[i]);
    source.named_.push_back(named_[i]);
  }
  source.begin_ = piece.begin;
  source.end_ = piece.end;
  source.total_bytes_ = piece.bytes;
  return source;
}

std::string TextSource::line_place(std::int64_t offset) const {
  const std::string name = files_[file_index_].string();
  if (begin_ == 0) return fmt::format("{}:{}", name, line_number_);
  // In the middle of a file, for a message: the lines before are counted now.
  CompressedFile file(files_[file_index_]);
  std::vector<char> bytes(buffer_bytes);
  std::int64_t line = 1;
  for (std::int64_t left = offset; left > 0;) {
    const auto wanted = static_cast<std::size_t>(
        std::min<std::int64_t>(left, static_cast<std::int64_t>(bytes.size())));
    const std::size_t got = file.read(std::span(bytes).first(wanted));
    if (got == 0) break;
    line += std::count(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(got), '\n');
    left -= static_cast<std::int64_t>(got);
  }
  return fmt::format("{}:{}", name, line);
}

double TextSource::progress() const {
  if (total_bytes_ == 0) return 1;
  const std::int64_t done = bytes_before_file_ + (file_ ? file_->file_position() : 0);
  return std::min(1.0, static_cast<double>(done) / static_cast<double>(total_bytes_));
}

void TextSource::open_file() {
  file_ = std::make_unique<CompressedFile>(files_[file_index_]);
  json_lines_ = holds_json_lines(files_[file_index_]);
  plain_done_ = false;
  line_number_ = 0;
  line_offset_ = 0;
  buffer_begin_ = buffer_end_ = 0;
  if (begin_ == 0) return;
  // From the first line that begins in the piece: what stands before it ends with the first line
  // end from the byte before the piece on.
  file_->seek(begin_ - 1);
  std::string rest;
  line_offset_ = begin_ - 1;
  if (read_line(rest)) line_offset_ += static_cast<std::int64_t>(rest.size()) + 1;
}

void TextSource::close_file() {
  file_.reset();
  bytes_before_file_ += static_cast<std::int64_t>(fs::file_size(files_[file_index_]));
  ++file_index_;
}

bool TextSource::next(std::string& document) {
  while (file_index_ < files_.size()) {
    if (!file_) {
      // An empty file of a folder may lie under any name, .gz too.
      if (!named_[file_index_] && fs::file_size(files_[file_index_]) == 0) {
        ++counts_.empty_documents;
        ++file_index_;
        continue;
      }
      open_file();
    }
    if (!next_in_file(document)) {
      close_file();
    } else if (document.empty()) {
      ++counts_.empty_documents;
    } else {
      ++counts_.documents;
      counts_.text_bytes += static_cast<std::int64_t>(document.size());
      return true;
    }
  }
  return false;
}

bool TextSource::next_in_file(std::string& document) {
  return json_lines_ ? next_json_line(document) : next_plain(document);
}

bool TextSource::next_plain(std::string& document) {
  if (plain_done_) return false;
  plain_done_ = true;
  const std::string name = files_[file_index_].string();
  document.clear();
  for (bool more = true; more;) {
    const std::size_t before = document.size();
    document.resize(before + buffer_bytes);
    const std::size_t got = file_->read(std::span(document).subspan(before));
    document.resize(before + got);
    refuse_binary(std::string_view(document).substr(before), static_cast<std::int64_t>(before),
                  name);
    more = got == buffer_bytes;
  }
  std::int64_t offset = 0;
  if (document.starts_with(byte_order_mark)) {
    drop_byte_order_mark(document);
    offset = static_cast<std::int64_t>(byte_order_mark.size());
  }
  counts_.invalid_sequences += apply_policy(document, offset, [&] { return name; });
  return true;
}

bool TextSource::read_line(std::string& line) {
  line.clear();
  bool any = false;
  for (;;) {
    if (buffer_begin_ == buffer_end_) {
      buffer_begin_ = 0;
      buffer_end_ = file_->read(buffer_);
      if (buffer_end_ == 0) return any;
    }
    any = true;
    const char* const begin = buffer_.data() + buffer_begin_;
    const std::size_t held = buffer_end_ - buffer_begin_;
    const auto* newline = static_cast<const char*>(std::memchr(begin, '\n', held));
    const std::size_t taken = newline ? static_cast<std::size_t>(newline - begin) : held;
    line.append(begin, taken);
    buffer_begin_ += taken + (newline ? 1 : 0);
    if (newline) return true;
  }
}

bool TextSource::next_json_line(std::string& document) {
  std::string line;
  for (;;) {
    const std::int64_t offset = line_offset_;
    if (end_ >= 0 && offset >= end_) return false;
    if (!read_line(line)) return false;
    ++line_number_;
    line_offset_ += static_cast<std::int64_t>(line.size()) + 1;
    const auto place = [&] { return line_place(offset); };
    if (offset == 0) drop_byte_order_mark(line);
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (line.find('\0') != std::string::npos) refuse_binary(line, offset, place());
    const std::int64_t invalid = apply_policy(line, offset, place);
    if (invalid > 0 && policy_ == InvalidUtf8::keep) {
      throw InputError(fmt::format(
          "{}: invalid UTF-8 in JSON, which is UTF-8 by definition, cannot be kept; use "
          "--invalid-utf8 replace",
          place()));
    }
    counts_.invalid_sequences += invalid;
    nlohmann::json object;
    try {
      object = nlohmann::json::parse(line);
    } catch (const nlohmann::json::exception& error) {
      throw InputError(
          fmt::format("{}: expected one JSON object a line with a string field \"text\", found "
                      "something that is no JSON ({}); mend the line, or name the file .txt where "
                      "it is plain text",
                      place(), error.what()));
    }
    const auto text = object.is_object() ? object.find("text") : object.end();
    if (text == object.end() || !text->is_string()) {
      throw InputError(
          fmt::format("{}: expected a JSON object with a string field \"text\", found {}", place(),
                      !object.is_object()    ? fmt::format("{}", object.type_name())
                      : text == object.end() ? std::string("an object without it")
                                             : fmt::format("\"text\": {}", text->type_name())));
    }
    document = std::move(text->get_ref<std::string&>());
    return true;
  }
}

std::int64_t TextSource::apply_policy(std::string& text, std::int64_t offset,
                                      const std::function<std::string()>& place) const {
  switch (policy_) {
    case InvalidUtf8::replace:
      return static_cast<std::int64_t>(replace_ill_formed_utf8(text));
    case InvalidUtf8::keep:
      return static_cast<std::int64_t>(count_ill_formed_utf8(text));
    case InvalidUtf8::error:
      break;
  }
  const IllFormed found = find_ill_formed_utf8(text);
  if (found.offset != std::string_view::npos) {
    throw InputError(fmt::format(
        "{}: invalid UTF-8 at byte {} (0x{:02X}); mend it, or use --invalid-utf8 replace", place(),
        offset + static_cast<std::int64_t>(found.offset),
        static_cast<unsigned>(static_cast<unsigned char>(text[found.offset]))));
  }
  return 0;
}

}  // namespace scone
