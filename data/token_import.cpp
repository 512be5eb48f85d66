#include "data/token_import.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "data/megatron_index.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t llm_c_header_bytes = 256 * 4;

struct LlmCKind {
  std::int32_t magic, version;
  int token_bytes;
};
constexpr std::array<LlmCKind, 2> llm_c_kinds = {{{20240520, 1, 2}, {20240801, 7, 4}}};

/// Where the tokens of one llm.c file lie, by its header.
struct FlatTokens {
  std::int64_t offset = 0, count = 0;
  int token_bytes = 2;
};

FlatTokens read_llm_c_header(const fs::path& path, const MappedFile& file) {
  std::array<std::int32_t, 3> header{};
  if (file.bytes() < llm_c_header_bytes)
    throw InputError(fmt::format(
        "{}: expected a token file of llm.c, which begins with {} bytes of header, found {} bytes",
        path.string(), llm_c_header_bytes, file.bytes()));
  std::memcpy(header.data(), file.data(), sizeof header);
  const auto kind = std::find_if(llm_c_kinds.begin(), llm_c_kinds.end(),
                                 [&](const LlmCKind& of) { return of.magic == header[0]; });
  if (kind == llm_c_kinds.end())
    throw InputError(fmt::format(
        "{}: expected a token file of llm.c, which begins with the number 20240520 (uint16) or "
        "20240801 (uint32), found {}; a file without header is read with --from nanogpt",
        path.string(), header[0]));
  if (kind->version != header[1])
    throw InputError(
        fmt::format("{}: expected version {} of llm.c's token files of kind {}, found "
                    "{}; make the file again with a script of this version",
                    path.string(), kind->version, kind->magic, header[1]));
  const std::int64_t held = file.bytes() - llm_c_header_bytes;
  if (header[2] < 0 || std::int64_t{header[2]} * kind->token_bytes != held)
    throw InputError(
        fmt::format("{}: the header says {} tokens of {} bytes, but {} bytes follow "
                    "it; the file is cut or damaged, get it again",
                    path.string(), header[2], kind->token_bytes, held));
  return {llm_c_header_bytes, header[2], kind->token_bytes};
}

FlatTokens read_nanogpt(const fs::path& path, const MappedFile& file, int token_bits) {
  const int width = token_bits / 8;
  if (file.bytes() % width != 0)
    throw InputError(
        fmt::format("{}: {} bytes are no whole number of tokens of {} bits; the file "
                    "is cut, or of another --token-bits",
                    path.string(), file.bytes(), token_bits));
  return {0, file.bytes() / width, width};
}

std::vector<fs::path> files_with(const fs::path& folder, const char* extension) {
  std::set<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == extension) files.insert(entry.path());
  }
  if (files.empty())
    throw InputError(
        fmt::format("--input {}: expected token files (*{}) in this folder, found none",
                    folder.string(), extension));
  return {files.begin(), files.end()};
}

fs::path with_extension(fs::path path, const char* extension) {
  if (path.extension() == ".bin" || path.extension() == ".idx") path.replace_extension();
  return path += extension;
}

/// The .bin files of the inputs.
std::vector<fs::path> token_files(const std::vector<fs::path>& inputs, bool megatron) {
  std::vector<fs::path> files;
  for (const fs::path& input : inputs) {
    if (fs::is_directory(input)) {
      for (fs::path& file : files_with(input, megatron ? ".idx" : ".bin"))
        files.push_back(megatron ? with_extension(file, ".bin") : std::move(file));
    } else {
      files.push_back(megatron ? with_extension(input, ".bin") : input);
    }
    if (!fs::is_regular_file(files.back()))
      throw InputError(fmt::format("--input {}: no such token file", files.back().string()));
  }
  if (files.empty()) throw InputError("--input: expected files or folders, found none");
  return files;
}

/// Whether encoding puts a space in front of a text that has none.
bool adds_space(const Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  tokenizer.encode("a", ids);
  return tokenizer.decode(ids) == " a";
}

}  // namespace

struct TokenFilePieces::File {
  File(fs::path of, std::int64_t first_position)
      : path(std::move(of)), mapped(path), first(first_position) {}
  fs::path path;
  MappedFile mapped;
  std::int64_t offset = 0, count = 0, first = 0;  // bytes, tokens; position of the first token
  TokenWidth width = TokenWidth::uint16;
  std::unique_ptr<MegatronIndex> index;

  std::int64_t token(std::int64_t position) const {
    return load_token(mapped.data() + offset, width, position - first);
  }
};

/// Positions of tokens, or documents of one file's index.
struct TokenFilePieces::Span {
  std::int64_t begin, end, bytes;
  const File* file;  // null: positions
};

TokenFilePieces::TokenFilePieces(const std::vector<fs::path>& inputs,
                                 const TokenImportOptions& options, const Tokenizer& tokenizer,
                                 std::int64_t piece_tokens)
    : tokenizer_(tokenizer),
      separator_(options.separator == -2 ? tokenizer.end_of_document() : options.separator),
      drops_first_space_(adds_space(tokenizer)) {
  if (options.token_bits != 16 && options.token_bits != 32)
    throw InputError(fmt::format("--token-bits: expected 16 or 32, found {}", options.token_bits));
  if (separator_ < -1 || separator_ >= tokenizer.vocabulary_size())
    throw InputError(fmt::format(
        "--document-separator: expected an id below the tokenizer's {}, or -1 for none, found {}",
        tokenizer.vocabulary_size(), separator_));
  for (std::int64_t id = 0; id < tokenizer.vocabulary_size(); ++id)
    token_bytes_.push_back(tokenizer.token_bytes(static_cast<std::int32_t>(id)));
  const bool megatron = options.format == TokenFormat::megatron;
  for (const fs::path& path : token_files(inputs, megatron)) {
    if (megatron) {
      add_megatron(path, piece_tokens);
    } else {
      add_flat(path, options);
    }
  }
  if (tokens_ == 0)
    throw InputError(fmt::format("--input {}: expected tokens, found none in {} files",
                                 inputs.front().string(), files_.size()));
  if (megatron) return;
  // Without a separator all is one document, which cannot be cut.
  const std::int64_t step = separator_ < 0 ? tokens_ : piece_tokens;
  for (std::int64_t begin = 0; begin < tokens_; begin += step) {
    const std::int64_t end = std::min(tokens_, begin + step);
    pieces_.push_back({begin, end, (end - begin) * bytes_of(file_of(begin).width), nullptr});
  }
}

TokenFilePieces::~TokenFilePieces() = default;

void TokenFilePieces::add_flat(const fs::path& path, const TokenImportOptions& options) {
  auto file = std::make_unique<File>(path, tokens_);
  const FlatTokens found = options.format == TokenFormat::llm_c
                               ? read_llm_c_header(path, file->mapped)
                               : read_nanogpt(path, file->mapped, options.token_bits);
  file->offset = found.offset;
  file->count = found.count;
  file->width = found.token_bytes == 2 ? TokenWidth::uint16 : TokenWidth::uint32;
  tokens_ += file->count;
  files_.push_back(std::move(file));
}

void TokenFilePieces::add_megatron(const fs::path& bin, std::int64_t piece_tokens) {
  auto file = std::make_unique<File>(bin, tokens_);
  file->index =
      std::make_unique<MegatronIndex>(with_extension(bin, ".idx"), bin, file->mapped.bytes());
  file->width = file->index->width();
  file->count = file->mapped.bytes() / bytes_of(file->width);
  tokens_ += file->count;
  const std::int64_t documents = file->index->documents();
  for (std::int64_t begin = 0; begin < documents;) {
    std::int64_t end = begin, tokens = 0;
    while (end < documents && tokens < piece_tokens) tokens += file->index->document(end++).count;
    pieces_.push_back({begin, end, tokens * bytes_of(file->width), file.get()});
    begin = end;
  }
  files_.push_back(std::move(file));
}

std::int64_t TokenFilePieces::count() const { return static_cast<std::int64_t>(pieces_.size()); }
std::int64_t TokenFilePieces::files() const { return static_cast<std::int64_t>(files_.size()); }
std::int64_t TokenFilePieces::bytes(std::int64_t piece) const {
  return pieces_.at(static_cast<std::size_t>(piece)).bytes;
}

const TokenFilePieces::File& TokenFilePieces::file_of(std::int64_t position) const {
  const auto next =
      std::upper_bound(files_.begin(), files_.end(), position,
                       [](std::int64_t wanted, const auto& file) { return wanted < file->first; });
  return **(next - 1);
}

std::int64_t TokenFilePieces::find_separator(std::int64_t position, std::int64_t end) const {
  if (separator_ < 0) return end;
  while (position < end) {
    const File& file = file_of(position);
    const std::int64_t here = std::min(end, file.first + file.count);
    for (; position < here; ++position) {
      if (file.token(position) == separator_) return position;
    }
  }
  return end;
}

TextCounts TokenFilePieces::make(std::int64_t piece,
                                 const std::function<void(EncodedDocument&&)>& sink) const {
  TextCounts counts;
  const Span& span = pieces_.at(static_cast<std::size_t>(piece));
  if (span.file == nullptr) {
    make_flat(span, counts, sink);
  } else {
    make_megatron(span, counts, sink);
  }
  return counts;
}

void TokenFilePieces::make_flat(const Span& piece, TextCounts& counts,
                                const std::function<void(EncodedDocument&&)>& sink) const {
  // Documents whose first token lies in the piece: those after a separator that lies from the token
  // before it on.
  std::int64_t begin = piece.begin;
  if (begin > 0) {
    const std::int64_t separator = find_separator(begin - 1, piece.end);
    if (separator == piece.end) return;
    begin = separator + 1;
  }
  while (begin < piece.end) {
    const std::int64_t end = find_separator(begin, tokens_);
    hand_out(begin, end, counts, sink);
    begin = end + 1;
  }
}

void TokenFilePieces::make_megatron(const Span& piece, TextCounts& counts,
                                    const std::function<void(EncodedDocument&&)>& sink) const {
  for (std::int64_t d = piece.begin; d < piece.end; ++d) {
    const MegatronIndex::Document document = piece.file->index->document(d);
    std::int64_t begin = piece.file->first + document.first;
    std::int64_t end = begin + document.count;
    while (end > begin && piece.file->token(end - 1) == separator_) --end;
    while (begin < end && piece.file->token(begin) == separator_) ++begin;
    hand_out(begin, end, counts, sink);
  }
}

void TokenFilePieces::hand_out(std::int64_t begin, std::int64_t end, TextCounts& counts,
                               const std::function<void(EncodedDocument&&)>& sink) const {
  if (begin == end) {
    ++counts.empty_documents;
    return;
  }
  EncodedDocument document;
  document.tokens.reserve(static_cast<std::size_t>(end - begin) + 1);
  std::string text;
  for (std::int64_t position = begin; position < end;) {
    const File& file = file_of(position);
    const std::int64_t here = std::min(end, file.first + file.count);
    for (; position < here; ++position) {
      const std::int64_t id = file.token(position);
      if (id < 0 || id >= static_cast<std::int64_t>(token_bytes_.size()))
        throw InputError(fmt::format(
            "{}: token {} is {}, but the tokenizer {} has {} tokens; give the tokenizer that made "
            "this file{}",
            file.path.string(), position - file.first, id, tokenizer_.file().string(),
            token_bytes_.size(),
            file.index == nullptr && file.offset == 0 ? ", or another --token-bits" : ""));
      document.tokens.push_back(static_cast<std::int32_t>(id));
      text += token_bytes_[static_cast<std::size_t>(id)];
    }
  }
  const std::int32_t end_of_document = tokenizer_.end_of_document();
  if (end_of_document >= 0) document.tokens.push_back(end_of_document);
  const std::string_view counted =
      std::string_view(text).substr(drops_first_space_ && text.starts_with(' ') ? 1 : 0);
  document.text_bytes = static_cast<std::int64_t>(counted.size());
  document.text_hash = XXH3_64bits(counted.data(), counted.size());
  ++counts.documents;
  counts.text_bytes += document.text_bytes;
  sink(std::move(document));
}

}  // namespace scone
