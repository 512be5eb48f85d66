#include "data/sentencepiece_tokenizer.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "data/file_fingerprint.h"
#include "data/utf8.h"
#include "data/word_cache.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// U+2581, which SentencePiece writes for a space.
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

/// Texts longer than this are cut where possible: memory grows with the length of a piece.
constexpr std::size_t kPieceBytes = 1 << 16;

bool is_ascii_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

std::string with_spaces(std::string_view piece) {
  std::string text;
  text.reserve(piece.size());
  for (std::size_t i = 0; i < piece.size();) {
    if (piece.substr(i, kSpaceMark.size()) == kSpaceMark) {
      text += ' ';
      i += kSpaceMark.size();
    } else {
      text += piece[i++];
    }
  }
  return text;
}

}  // namespace

struct SentencePieceTokenizer::State {
  std::filesystem::path file;
  std::string fingerprint;
  sentencepiece::SentencePieceProcessor processor;
  std::vector<std::string> bytes;              // by id
  std::array<std::int32_t, 256> id_of_byte{};  // -1: none
  bool adds_space = false;                     // in front of every text
  bool keeps_spaces = false;                   // does not drop spaces in front
  bool lossless = false;       // bytes that the model cannot hold are put in as byte pieces
  bool cuts_at_space = false;  // no piece goes across the start of a word
  mutable WordCache cache;
  bool cuts_at_newline = false;  // "\n" is a piece of the user's: nothing goes across

  std::vector<int> encode_plain(std::string_view text) const {
    std::vector<int> ids;
    const auto status = processor.Encode(text, &ids);
    if (!status.ok()) {
      throw std::runtime_error(
          fmt::format("{}: encoding failed: {}", file.string(), status.ToString()));
    }
    return ids;
  }

  void read_pieces();
  void probe();
  std::size_t cut_after(std::string_view text, std::size_t from) const;
  void encode_words(std::string_view text, std::vector<std::int32_t>& ids) const;
  void encode_in_pieces(std::string_view text, std::vector<std::int32_t>& ids) const;
};

void SentencePieceTokenizer::State::read_pieces() {
  id_of_byte.fill(-1);
  cuts_at_space = true;
  bytes.resize(static_cast<std::size_t>(processor.GetPieceSize()));
  bool all_bytes = true;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    std::string& token = bytes[static_cast<std::size_t>(id)];
    if (processor.IsByte(id)) {
      // Written <0xE2>.
      const int byte = std::stoi(piece.substr(1, piece.size() - 2), nullptr, 16);
      token = std::string(1, static_cast<char>(byte));
      id_of_byte.at(static_cast<std::size_t>(byte)) = id;
    } else if (!processor.IsControl(id) && !processor.IsUnknown(id)) {
      token = with_spaces(piece);
      const std::size_t word = token.find_first_not_of(' ');
      if (word != std::string::npos && token.find(' ', word) != std::string::npos) {
        cuts_at_space = false;
      }
    }
  }
  for (const std::int32_t id : id_of_byte) all_bytes = all_bytes && id >= 0;
  lossless = all_bytes;
}

void SentencePieceTokenizer::State::probe() {
  const auto text_of = [&](std::string_view text) {
    std::string result;
    for (const int id : encode_plain(text)) result += bytes[static_cast<std::size_t>(id)];
    return result;
  };
  adds_space = text_of("a") == " a";
  keeps_spaces = text_of("  a").substr(adds_space ? 1 : 0) == "  a";
  // Compatibility forms, a combining mark and unusual spaces: what normalisation would change.
  constexpr std::string_view kUnusual = "\xEF\xAC\x81\xC2\xB2 e\xCC\x81\xC2\xA0\xE3\x80\x80x  ";
  lossless = lossless && !adds_space && keeps_spaces && text_of(kUnusual) == kUnusual;
  // A piece of the user's is found before all others, so "a\nb" is encoded as its three parts.
  const int newline = processor.PieceToId("\n");
  cuts_at_newline = !adds_space && keeps_spaces && !processor.IsUnknown(newline) &&
                    processor.IdToPiece(newline) == "\n";
  for (std::size_t id = 0; id < bytes.size() && cuts_at_newline; ++id) {
    cuts_at_newline = bytes[id] == "\n" || bytes[id].find('\n') == std::string::npos;
  }
}

/// Where text[from..] may be cut, beyond kPieceBytes; text.size(): nowhere.
std::size_t SentencePieceTokenizer::State::cut_after(std::string_view text,
                                                     std::size_t from) const {
  for (std::size_t i = from + kPieceBytes; i + 1 < text.size(); ++i) {
    if (cuts_at_newline && text[i] == '\n') return i;
    // One space between two plain words. Where the model adds a space in front, it adds this one.
    if (cuts_at_space && (adds_space || keeps_spaces) && text[i] == ' ' &&
        is_ascii_alphanumeric(text[i - 1]) && is_ascii_alphanumeric(text[i + 1])) {
      return i;
    }
  }
  return text.size();
}

/// For lossless models whose pieces stay inside words: a word is what stands from a run of spaces
/// to the next.
void SentencePieceTokenizer::State::encode_words(std::string_view text,
                                                 std::vector<std::int32_t>& ids) const {
  const auto is_cut = [&](std::size_t i) {
    if (cuts_at_newline && (text[i] == '\n' || text[i - 1] == '\n')) return true;
    return text[i] == ' ' && text[i - 1] != ' ';
  };
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin + 1;
    while (end < text.size() && !is_cut(end)) ++end;
    cache.append(text.substr(begin, end - begin), ids,
                 [this](std::string_view word, std::vector<std::int32_t>& out) {
                   const std::vector<int> piece = encode_plain(word);
                   out.insert(out.end(), piece.begin(), piece.end());
                 });
    begin = end;
  }
}

void SentencePieceTokenizer::State::encode_in_pieces(std::string_view text,
                                                     std::vector<std::int32_t>& ids) const {
  if (lossless && cuts_at_space) {
    encode_words(text, ids);
    return;
  }
  std::size_t from = 0;
  while (from < text.size()) {
    const std::size_t end = text.size() - from > kPieceBytes ? cut_after(text, from) : text.size();
    const std::vector<int> piece = encode_plain(text.substr(from, end - from));
    ids.insert(ids.end(), piece.begin(), piece.end());
    from = end;
    if (adds_space && from < text.size()) ++from;
  }
}

SentencePieceTokenizer::SentencePieceTokenizer(std::filesystem::path file, std::string_view model)
    : state_(std::make_unique<State>()) {
  state_->file = std::move(file);
  state_->fingerprint = xxh3_hex(model);
  const auto status = state_->processor.LoadFromSerializedProto(model);
  if (!status.ok() || state_->processor.GetPieceSize() == 0) {
    throw InputError(fmt::format(
        "{}: expected a SentencePiece model or a Hugging Face tokenizer.json, found neither ({}); "
        "get the file again, or train a tokenizer with --train-tokenizer",
        state_->file.string(), status.ok() ? "no pieces" : status.ToString()));
  }
  state_->read_pieces();
  state_->probe();
}

SentencePieceTokenizer::~SentencePieceTokenizer() = default;

std::int64_t SentencePieceTokenizer::vocabulary_size() const {
  return state_->processor.GetPieceSize();
}

void SentencePieceTokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  if (!state_->lossless) {
    state_->encode_in_pieces(text, ids);
    return;
  }
  std::size_t done = 0;
  std::size_t mark = text.find(kSpaceMark);
  IllFormed bad = find_ill_formed_utf8(text);
  while (mark != std::string_view::npos || bad.offset != std::string_view::npos) {
    const std::size_t begin = std::min(mark, bad.offset);
    const std::size_t end = begin + (begin == mark ? kSpaceMark.size() : bad.length);
    state_->encode_in_pieces(text.substr(done, begin - done), ids);
    for (const char byte : text.substr(begin, end - begin)) {
      ids.push_back(state_->id_of_byte[static_cast<unsigned char>(byte)]);
    }
    done = end;
    if (begin == mark) {
      mark = text.find(kSpaceMark, done);
    } else {
      bad = find_ill_formed_utf8(text, done);
    }
  }
  state_->encode_in_pieces(text.substr(done), ids);
}

std::string SentencePieceTokenizer::token_bytes(std::int32_t id) const {
  const auto index = static_cast<std::size_t>(id);
  return id >= 0 && index < state_->bytes.size() ? state_->bytes[index] : std::string();
}

std::int32_t SentencePieceTokenizer::end_of_document() const { return state_->processor.eos_id(); }
std::string SentencePieceTokenizer::fingerprint() const { return state_->fingerprint; }
std::string SentencePieceTokenizer::description() const {
  return state_->lossless ? "SentencePiece, lossless" : "SentencePiece";
}
std::filesystem::path SentencePieceTokenizer::file() const { return state_->file; }

}  // namespace scone
