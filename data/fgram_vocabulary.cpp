#include "data/fgram_vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "data/fgram_file.h"
#include "data/fgram_index.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// Checks what concerns no single f-gram, before anything is sized by it.
void check_header(const FgramHeader& header, const std::string& source) {
  const std::int64_t vocabulary = header.token_vocabulary_size;
  if (vocabulary < 1 || vocabulary > largest_token_vocabulary ||
      header.size > FgramIndex::most_fgrams) {
    throw InputError(
        fmt::format("{}: {} tokens and {} f-grams; expected 1..{} tokens, and less than 2^31 - 1 "
                    "f-grams",
                    source, vocabulary, header.size, largest_token_vocabulary));
  }
  if (header.max_length < 2 || header.max_length > longest_fgram) {
    throw InputError(fmt::format("{}: max_length is {}, expected 2..{}", source, header.max_length,
                                 longest_fgram));
  }
}

/// Every f-gram a child of a token or of a lower id one longer than it, tokens inside the
/// vocabulary, counts descending.
void check_row(const FgramColumns& columns, std::size_t id, const FgramHeader& header,
               const std::string& source) {
  const auto vocabulary = static_cast<std::uint64_t>(header.token_vocabulary_size);
  const std::uint64_t prefix = columns.prefix(id);
  const int length = columns.length(id);
  const auto fail = [&](const std::string& what) {
    throw InputError(
        fmt::format("{}: f-gram {} has {}; the file is damaged, make it again", source, id, what));
  };
  if (prefix >= vocabulary + id) {
    fail(fmt::format("prefix {}, expected a token below {} or an f-gram before it (below {})",
                     prefix, vocabulary, vocabulary + id));
  }
  const int prefix_length =
      prefix < vocabulary ? 1 : columns.length(static_cast<std::size_t>(prefix - vocabulary));
  if (length != prefix_length + 1 || length > header.max_length) {
    fail(fmt::format("length {}, expected {}, at most {}", length, prefix_length + 1,
                     header.max_length));
  }
  if (columns.last_token(id) >= vocabulary) {
    fail(fmt::format("last token {}, beyond the vocabulary of {}", columns.last_token(id),
                     vocabulary));
  }
  if (id > 0 && columns.count(id) > columns.count(id - 1)) {
    fail(fmt::format("count {}, more than the one before it", columns.count(id)));
  }
}

/// The columns of contents in memory, in the types of the file.
struct OwnedColumns {
  std::vector<std::uint32_t> prefix, last_token;
  std::vector<std::uint16_t> short_last_token;
  std::vector<std::uint8_t> length;
  std::vector<std::uint64_t> count;

  OwnedColumns(FgramVocabularyContents contents, const std::string& source)
      : length(std::move(contents.length)), count(std::move(contents.count)) {
    const std::size_t size = contents.prefix.size();
    const std::int64_t vocabulary = contents.token_vocabulary_size;
    if (contents.last_token.size() != size || length.size() != size || count.size() != size) {
      throw InputError(
          fmt::format("{}: prefix, last_token, length and count differ in size", source));
    }
    const bool short_tokens = last_token_bytes(vocabulary) == 2;
    for (std::size_t id = 0; id < size; ++id) {
      const std::int64_t stored = contents.prefix[id];
      // Checked here, since the narrower types of the columns could hide it.
      if (stored >= static_cast<std::int64_t>(id) || stored < -vocabulary ||
          contents.last_token[id] >= static_cast<std::uint64_t>(vocabulary)) {
        throw InputError(fmt::format(
            "{}: f-gram {} has prefix {} and last token {}, expected {}..{} and less than {}",
            source, id, stored, contents.last_token[id], -vocabulary,
            static_cast<std::int64_t>(id) - 1, vocabulary));
      }
      prefix.push_back(static_cast<std::uint32_t>(stored < 0 ? -1 - stored : vocabulary + stored));
      if (short_tokens) {
        short_last_token.push_back(static_cast<std::uint16_t>(contents.last_token[id]));
      } else {
        last_token.push_back(contents.last_token[id]);
      }
    }
  }
  FgramColumns view() const {
    FgramColumns columns;
    columns.prefixes = std::as_bytes(std::span(prefix)).data();
    columns.token_bytes = last_token.empty() ? 2 : 4;
    columns.last_tokens = last_token.empty() ? std::as_bytes(std::span(short_last_token)).data()
                                             : std::as_bytes(std::span(last_token)).data();
    columns.lengths = std::as_bytes(std::span(length)).data();
    columns.counts = std::as_bytes(std::span(count)).data();
    return columns;
  }
};

}  // namespace

struct FgramVocabulary::State {
  FgramHeader header;
  FgramColumns columns;
  std::unique_ptr<FgramFile> file;  // one of the two holds the columns
  std::unique_ptr<OwnedColumns> owned;
  int max_length = 0;  // the longest f-gram in the index
  FgramIndex index;
  std::once_flag fingerprint_once;  // it reads all f-grams
  std::string fingerprint;

  void fill(int limit, const std::string& source) {
    check_header(header, source);
    if (limit == 0) limit = longest_fgram;
    if (limit < 2) {
      throw InputError(fmt::format("{}: max_length {} was asked for, expected at least 2 (0: any)",
                                   source, limit));
    }
    const auto size = static_cast<std::size_t>(header.size);
    std::int64_t indexed = 0;
    for (std::size_t id = 0; id < size; ++id) {
      check_row(columns, id, header, source);
      if (columns.length(id) > limit) continue;
      ++indexed;
      max_length = std::max(max_length, columns.length(id));
    }
    std::uint64_t buckets = 0;
    while (!try_index(indexed, limit, buckets, source)) buckets = index.buckets() * 5 / 4 + 1;
  }

  /// False where it needs more buckets.
  bool try_index(std::int64_t indexed, int limit, std::uint64_t buckets,
                 const std::string& source) {
    index = FgramIndex();  // frees the one that was too small
    index = FgramIndex(indexed, header.token_vocabulary_size + header.size,
                       header.token_vocabulary_size, buckets);
    constexpr std::size_t ahead = 16;
    const auto size = static_cast<std::size_t>(header.size);
    for (std::size_t id = 0; id < size; ++id) {
      if (id + ahead < size)
        index.start(columns.prefix(id + ahead), columns.last_token(id + ahead));
      if (columns.length(id) > limit) continue;
      switch (index.insert(columns.prefix(id), columns.last_token(id),
                           static_cast<std::uint32_t>(id))) {
        case FgramIndex::Inserted::yes:
          break;
        case FgramIndex::Inserted::full:
          return false;
        case FgramIndex::Inserted::twice:
          throw InputError(
              fmt::format("{}: f-grams {} and {} are the same; the file is damaged, make it again",
                          source, index.find(columns.prefix(id), columns.last_token(id)), id));
      }
    }
    return index.close();
  }

  std::int64_t find(std::uint32_t prefix, std::int32_t token) const {
    return index.find(prefix, static_cast<std::uint32_t>(token));
  }
  std::uint32_t reference(std::int64_t id) const {
    return static_cast<std::uint32_t>(header.token_vocabulary_size + id);
  }
  bool is_token(std::int64_t token) const {
    return token >= 0 && token < header.token_vocabulary_size;
  }
  std::size_t checked(std::int64_t id) const {
    if (id < 0 || id >= header.size)
      throw std::out_of_range(fmt::format("f-gram {} of {}", id, header.size));
    return static_cast<std::size_t>(id);
  }
  /// As in the file: a token, or the token vocabulary's size + an id.
  std::int64_t stored_prefix(std::int64_t id) const { return columns.prefix(checked(id)); }

  void check_tokens(std::span<const std::int32_t> tokens) const {
    std::uint32_t largest = 0;
    for (const std::int32_t token : tokens)
      largest = std::max(largest, static_cast<std::uint32_t>(token));
    if (largest >= static_cast<std::uint64_t>(header.token_vocabulary_size)) {
      throw std::invalid_argument(
          fmt::format("FgramVocabulary::match: token {} of a vocabulary of {}",
                      static_cast<std::int32_t>(largest), header.token_vocabulary_size));
    }
  }

  template <bool with_lengths>
  void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids,
             std::span<std::uint8_t> lengths) const;
};

FgramVocabulary::FgramVocabulary(const std::filesystem::path& path, std::int64_t size,
                                 int max_length)
    : state_(std::make_unique<State>()) {
  state_->file = std::make_unique<FgramFile>(path, size);
  state_->header = state_->file->header();
  state_->columns = state_->file->columns();
  state_->fill(max_length, path.string());
}
FgramVocabulary::FgramVocabulary(FgramVocabularyContents contents, const std::string& source)
    : state_(std::make_unique<State>()) {
  FgramHeader& header = state_->header;
  header.tokenizer_fingerprint = contents.tokenizer_fingerprint;
  header.corpus_fingerprint = contents.corpus_fingerprint;
  header.token_vocabulary_size = contents.token_vocabulary_size;
  header.corpus_tokens = contents.corpus_tokens;
  header.min_count = contents.min_count;
  header.size = static_cast<std::int64_t>(contents.prefix.size());
  header.max_length = contents.max_length;
  check_header(header, source);
  state_->owned = std::make_unique<OwnedColumns>(std::move(contents), source);
  state_->columns = state_->owned->view();
  state_->fill(0, source);
}
FgramVocabulary::~FgramVocabulary() = default;
FgramVocabulary::FgramVocabulary(FgramVocabulary&&) noexcept = default;

std::int64_t FgramVocabulary::size() const { return state_->header.size; }
int FgramVocabulary::max_length() const { return state_->max_length; }
std::int64_t FgramVocabulary::token_vocabulary_size() const {
  return state_->header.token_vocabulary_size;
}
const std::string& FgramVocabulary::tokenizer_fingerprint() const {
  return state_->header.tokenizer_fingerprint;
}

std::string FgramVocabulary::fingerprint() const {
  std::call_once(state_->fingerprint_once, [&] {
    state_->fingerprint = fgram_fingerprint(state_->columns, size(), max_length());
  });
  return state_->fingerprint;
}

std::int64_t FgramVocabulary::child(std::int32_t first, std::int32_t second) const {
  if (!state_->is_token(first) || !state_->is_token(second)) return -1;
  return state_->find(static_cast<std::uint32_t>(first), second);
}
std::int64_t FgramVocabulary::child(std::int64_t prefix_id, std::int32_t token) const {
  if (prefix_id < 0 || prefix_id >= size() || !state_->is_token(token)) return -1;
  return state_->find(state_->reference(prefix_id), token);
}
std::int64_t FgramVocabulary::prefix(std::int64_t id) const {
  return std::max<std::int64_t>(-1, state_->stored_prefix(id) - token_vocabulary_size());
}
std::int32_t FgramVocabulary::first_token(std::int64_t id) const {
  return static_cast<std::int32_t>(state_->stored_prefix(leading_bigram(id)));
}
std::int32_t FgramVocabulary::last_token(std::int64_t id) const {
  return static_cast<std::int32_t>(state_->columns.last_token(state_->checked(id)));
}
int FgramVocabulary::length(std::int64_t id) const {
  return state_->columns.length(state_->checked(id));
}
std::int64_t FgramVocabulary::count(std::int64_t id) const {
  return static_cast<std::int64_t>(state_->columns.count(state_->checked(id)));
}

std::vector<std::int32_t> FgramVocabulary::tokens(std::int64_t id) const {
  std::vector<std::int32_t> result;
  for (std::int64_t up = id; up >= 0; up = prefix(id = up)) result.push_back(last_token(up));
  result.push_back(static_cast<std::int32_t>(state_->stored_prefix(id)));
  std::reverse(result.begin(), result.end());
  return result;
}

std::int64_t FgramVocabulary::leading_bigram(std::int64_t id) const {
  for (std::int64_t up = prefix(id); up >= 0; up = prefix(id)) id = up;
  return id;
}

std::int64_t FgramVocabulary::memory_bytes() const {
  return state_->index.bytes() +
         size() * static_cast<std::int64_t>(sizeof(std::uint32_t) + state_->columns.token_bytes);
}

template <bool with_lengths>
void FgramVocabulary::State::match(std::span<const std::int32_t> tokens,
                                   std::span<std::int64_t> ids,
                                   std::span<std::uint8_t> lengths) const {
  check_tokens(tokens);
  std::fill(ids.begin(), ids.end(), -1);
  if constexpr (with_lengths) std::fill(lengths.begin(), lengths.end(), std::uint8_t{0});
  // The starts of a block grow together, so that the index' cache misses overlap. Of two matches
  // that end together the longer has the smaller start.
  constexpr std::size_t block = 128;
  struct Growing {
    FgramIndex::Probe probe;
    std::uint32_t end;     // where the f-gram that is looked up ends, from the block's begin
    std::uint32_t length;  // its tokens
  };
  Growing growing[block];
  // Lengths of the matches found, by their ends; an earlier block may have written the first.
  std::uint8_t length_of[block + longest_fgram] = {};
  const auto longest = static_cast<std::size_t>(max_length);
  for (std::size_t begin = 0; begin + 1 < tokens.size(); begin += block) {
    if (begin > 0) {
      std::copy(length_of + block, length_of + block + longest, length_of);
      std::fill(length_of + longest, length_of + block + longest, std::uint8_t{0});
    }
    const auto* here = reinterpret_cast<const std::uint32_t*>(tokens.data() + begin);
    const std::size_t rest = tokens.size() - begin;
    std::size_t count = std::min(block, rest - 1);
    for (std::size_t i = 0; i < count; ++i)
      growing[i] = {index.start(here[i], here[i + 1]), static_cast<std::uint32_t>(i + 1), 2};
    while (count > 0) {
      std::size_t kept = 0;
      for (std::size_t i = 0; i < count; ++i) {
        Growing one = growing[i];
        const std::int64_t id = FgramIndex::step(one.probe);
        if (id >= 0) {
          if (length_of[one.end] < one.length) {
            length_of[one.end] = static_cast<std::uint8_t>(one.length);
            ids[begin + one.end] = id;
          }
          if (one.length == longest || one.end + 1 == rest) continue;
          ++one.end;
          ++one.length;
          one.probe = index.start(reference(id), here[one.end]);
        } else if (id == FgramIndex::absent) {
          continue;
        }
        growing[kept++] = one;
      }
      count = kept;
    }
    if constexpr (with_lengths) {
      const std::size_t done = std::min(block + longest - 1, rest);
      std::copy(length_of, length_of + done, lengths.begin() + static_cast<std::ptrdiff_t>(begin));
    }
  }
}

void FgramVocabulary::match(std::span<const std::int32_t> tokens,
                            std::span<std::int64_t> ids) const {
  if (ids.size() != tokens.size()) {
    throw std::invalid_argument("FgramVocabulary::match: tokens and ids differ in size");
  }
  state_->match<false>(tokens, ids, {});
}

void FgramVocabulary::match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids,
                            std::span<std::uint8_t> lengths) const {
  if (ids.size() != tokens.size() || lengths.size() != tokens.size()) {
    throw std::invalid_argument("FgramVocabulary::match: tokens, ids and lengths differ in size");
  }
  state_->match<true>(tokens, ids, lengths);
}

std::size_t FgramVocabulary::match_of_lengths(std::span<const std::int32_t> tokens,
                                              std::span<const std::uint8_t> lengths,
                                              std::span<std::int64_t> ids) const {
  if (ids.size() != tokens.size() || lengths.size() != tokens.size()) {
    throw std::invalid_argument(
        "FgramVocabulary::match_of_lengths: tokens, ids and lengths differ in size");
  }
  state_->check_tokens(tokens);
  std::fill(ids.begin(), ids.end(), -1);
  constexpr std::size_t block = 128;
  struct Growing {
    FgramIndex::Probe probe;
    std::size_t end, next;  // the match's last position; that of the token being appended
  };
  Growing growing[block];
  const FgramIndex& index = state_->index;
  const auto start = [&](std::uint32_t prefix, std::size_t next) {
    return index.start(prefix, static_cast<std::uint32_t>(tokens[next]));
  };
  for (std::size_t begin = 0; begin < tokens.size(); begin += block) {
    std::size_t count = 0;
    for (std::size_t end = begin; end < std::min(begin + block, tokens.size()); ++end) {
      if (lengths[end] == 0) continue;
      if (lengths[end] == 1 || lengths[end] > end + 1) return end;
      const std::size_t first = end + 1 - lengths[end];
      growing[count++] = {start(static_cast<std::uint32_t>(tokens[first]), first + 1), end,
                          first + 1};
    }
    while (count > 0) {
      std::size_t kept = 0;
      for (std::size_t i = 0; i < count; ++i) {
        Growing one = growing[i];
        const std::int64_t id = FgramIndex::step(one.probe);
        if (id == FgramIndex::absent) return one.end;
        if (id >= 0) {
          if (one.next == one.end) {
            ids[one.end] = id;
            continue;
          }
          one.probe = start(state_->reference(id), ++one.next);
        }
        growing[kept++] = one;
      }
      count = kept;
    }
  }
  return tokens.size();
}

void FgramVocabulary::save(const std::filesystem::path& path) const {
  FgramFileWriter writer(path, state_->header);
  const FgramColumns& columns = state_->columns;
  for (std::size_t id = 0; id < static_cast<std::size_t>(size()); ++id) {
    writer.add({columns.prefix(id), columns.last_token(id),
                static_cast<std::uint8_t>(columns.length(id)), columns.count(id)});
  }
  writer.finish();
}

}  // namespace scone
