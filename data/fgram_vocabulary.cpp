#include "data/fgram_vocabulary.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>

#include "data/hdf5_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::int64_t format_version = 2;
constexpr std::uint64_t empty_key = std::numeric_limits<std::uint64_t>::max();
constexpr int longest_fgram = 255;  // /length is one byte

std::uint64_t hash_key(std::uint64_t key) {
  key ^= key >> 32U;
  key *= 0xD6E8FEB86659FD93U;
  key ^= key >> 32U;
  key *= 0xD6E8FEB86659FD93U;
  return key ^ (key >> 32U);
}

/// 16 hex digits of XXH3-64 over the datasets, one after the other.
std::string checksum_of(const FgramVocabularyContents& contents) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_64bits_reset(state.get());
  const auto add = [&](const auto& values) {
    XXH3_64bits_update(state.get(), values.data(), values.size() * sizeof(values[0]));
  };
  add(contents.prefix);
  add(contents.last_token);
  add(contents.length);
  add(contents.count);
  return fmt::format("{:016x}", XXH3_64bits_digest(state.get()));
}

FgramVocabularyContents read_contents(const std::filesystem::path& path, std::int64_t wanted) {
  const Hdf5File file = Hdf5File::open(path);
  if (!file.has_attribute("format") || file.string_attribute("format") != "scone-fgrams") {
    throw InputError(fmt::format(
        "{}: expected the attribute format = \"scone-fgrams\", found {}; give a file of `scone "
        "fgrams`",
        path.string(),
        file.has_attribute("format") ? "\"" + file.string_attribute("format") + "\"" : "none"));
  }
  if (const std::int64_t version = file.integer_attribute("format_version");
      version != format_version) {
    throw InputError(
        fmt::format("{}: format_version {} is not {}, the one known here; make the file again with "
                    "`scone fgrams`",
                    path.string(), version, format_version));
  }
  const std::int64_t size = file.integer_attribute("size");
  if (size < 1) {
    throw InputError(
        fmt::format("{}: attribute size is {}, expected at least 1", path.string(), size));
  }
  if (wanted < 0 || wanted > size) {
    throw InputError(fmt::format(
        "{}: the first {} f-grams were asked for, it holds {}; lower fgrams.size or make a larger "
        "file",
        path.string(), wanted, size));
  }
  for (const char* name : {"/prefix", "/last_token", "/length", "/count"}) {
    if (!file.has_dataset(name)) {
      throw InputError(
          fmt::format("{}: dataset {} is missing; make the file again", path.string(), name));
    }
    if (const auto shape = file.dataset_shape(name); shape != std::vector<std::int64_t>{size}) {
      throw InputError(
          fmt::format("{}: dataset {} has shape [{}], expected [{}]; make the file again",
                      path.string(), name, fmt::join(shape, ", "), size));
    }
  }
  FgramVocabularyContents contents;
  contents.tokenizer_fingerprint = file.string_attribute("tokenizer_fingerprint");
  contents.corpus_fingerprint = file.string_attribute("corpus_fingerprint");
  contents.token_vocabulary_size = file.integer_attribute("vocabulary_size");
  contents.corpus_tokens = file.integer_attribute("corpus_tokens");
  contents.min_count = file.integer_attribute("min_count");
  const std::int64_t max_length = file.integer_attribute("max_length");
  if (max_length < 2 || max_length > longest_fgram) {
    throw InputError(fmt::format("{}: attribute max_length is {}, expected 2..{}", path.string(),
                                 max_length, longest_fgram));
  }
  contents.max_length = static_cast<int>(max_length);
  const std::int64_t used = wanted == 0 ? size : wanted;
  const auto entries = static_cast<std::size_t>(used);
  contents.prefix.resize(entries);
  contents.last_token.resize(entries);
  contents.length.resize(entries);
  contents.count.resize(entries);
  file.read("/prefix", H5T_NATIVE_INT64, contents.prefix.data(), 0, used);
  file.read("/last_token", H5T_NATIVE_UINT32, contents.last_token.data(), 0, used);
  file.read("/length", H5T_NATIVE_UINT8, contents.length.data(), 0, used);
  file.read("/count", H5T_NATIVE_UINT64, contents.count.data(), 0, used);
  if (used == size) {
    const std::string expected = file.string_attribute("checksum"), found = checksum_of(contents);
    if (expected != found) {
      throw InputError(fmt::format(
          "{}: expected checksum {}, found {}: the f-grams were changed; make the file again",
          path.string(), expected, found));
    }
  }
  return contents;
}

/// Every f-gram a child of a token or of a lower id one longer than it, tokens inside the
/// vocabulary, counts descending.
void check_contents(const FgramVocabularyContents& contents, const std::string& source) {
  const std::size_t size = contents.prefix.size();
  const auto vocabulary = contents.token_vocabulary_size;
  if (vocabulary < 1 || vocabulary > std::numeric_limits<std::int32_t>::max() ||
      static_cast<std::uint64_t>(vocabulary) + size >= std::numeric_limits<std::uint32_t>::max()) {
    throw InputError(fmt::format(
        "{}: {} tokens and {} f-grams; expected at least one token, and less than 2^32 - 1 "
        "in all",
        source, vocabulary, size));
  }
  if (contents.last_token.size() != size || contents.length.size() != size ||
      contents.count.size() != size) {
    throw InputError(
        fmt::format("{}: prefix, last_token, length and count differ in size", source));
  }
  for (std::size_t id = 0; id < size; ++id) {
    const std::int64_t prefix = contents.prefix[id];
    const int length = contents.length[id];
    const auto fail = [&](const std::string& what) {
      throw InputError(fmt::format("{}: f-gram {} has {}; the file is damaged, make it again",
                                   source, id, what));
    };
    if (prefix >= static_cast<std::int64_t>(id) || prefix < -vocabulary) {
      fail(fmt::format("prefix {}, expected {}..{}", prefix, -vocabulary,
                       static_cast<std::int64_t>(id) - 1));
    }
    const int prefix_length = prefix < 0 ? 1 : contents.length[static_cast<std::size_t>(prefix)];
    if (length != prefix_length + 1 || length > contents.max_length) {
      fail(fmt::format("length {}, expected {}, at most {}", length, prefix_length + 1,
                       contents.max_length));
    }
    if (contents.last_token[id] >= static_cast<std::uint64_t>(vocabulary)) {
      fail(fmt::format("last token {}, beyond the vocabulary of {}", contents.last_token[id],
                       vocabulary));
    }
    if (id > 0 && contents.count[id] > contents.count[id - 1]) {
      fail(fmt::format("count {}, more than the one before it", contents.count[id]));
    }
  }
}

}  // namespace

struct FgramVocabulary::State {
  struct Slot {
    std::uint64_t key;
    std::int64_t id;
  };

  FgramVocabularyContents contents;
  int max_length = 0;  // the longest f-gram in the table
  std::size_t mask = 0;
  std::vector<Slot> slots;  // open addressing, linear probing, at most two thirds full

  State(FgramVocabularyContents read, int limit, const std::string& source)
      : contents(std::move(read)) {
    check_contents(contents, source);
    if (limit == 0) limit = longest_fgram;
    if (limit < 2) {
      throw InputError(fmt::format("{}: max_length {} was asked for, expected at least 2 (0: any)",
                                   source, limit));
    }
    const std::size_t size = contents.prefix.size();
    mask = std::bit_ceil(std::max<std::size_t>(16, size * 3 / 2)) - 1;
    slots.assign(mask + 1, Slot{empty_key, -1});
    for (std::size_t id = 0; id < size; ++id) {
      if (contents.length[id] > limit) continue;
      max_length = std::max<int>(max_length, contents.length[id]);
      const std::uint64_t key =
          key_of(contents.prefix[id], static_cast<std::int32_t>(contents.last_token[id]));
      std::size_t slot = hash_key(key) & mask;
      for (; slots[slot].key != empty_key; slot = (slot + 1) & mask) {
        if (slots[slot].key == key) {
          throw InputError(
              fmt::format("{}: f-grams {} and {} are the same; the file is damaged, make it again",
                          source, slots[slot].id, id));
        }
      }
      slots[slot] = {key, static_cast<std::int64_t>(id)};
    }
  }

  /// Exact key of (prefix, token); prefix as in the file: an id, or -1 - token. A reference to a
  /// token or an f-gram is one number: tokens first, then ids.
  std::uint64_t key_of(std::int64_t prefix, std::int32_t token) const {
    const std::int64_t reference =
        prefix < 0 ? -1 - prefix : contents.token_vocabulary_size + prefix;
    return static_cast<std::uint64_t>(reference) << 32U | static_cast<std::uint32_t>(token);
  }
  std::int64_t find(std::uint64_t key) const {
    for (std::size_t slot = hash_key(key) & mask;; slot = (slot + 1) & mask) {
      if (slots[slot].key == key) return slots[slot].id;
      if (slots[slot].key == empty_key) return -1;
    }
  }
  std::int64_t stored_prefix(std::int64_t id) const {
    return contents.prefix.at(static_cast<std::size_t>(id));
  }
};

FgramVocabulary::FgramVocabulary(const std::filesystem::path& path, std::int64_t size,
                                 int max_length)
    : state_(std::make_unique<State>(read_contents(path, size), max_length, path.string())) {}
FgramVocabulary::FgramVocabulary(FgramVocabularyContents contents, const std::string& source)
    : state_(std::make_unique<State>(std::move(contents), 0, source)) {}
FgramVocabulary::~FgramVocabulary() = default;
FgramVocabulary::FgramVocabulary(FgramVocabulary&&) noexcept = default;

std::int64_t FgramVocabulary::size() const {
  return static_cast<std::int64_t>(state_->contents.prefix.size());
}
int FgramVocabulary::max_length() const { return state_->max_length; }
std::int64_t FgramVocabulary::token_vocabulary_size() const {
  return state_->contents.token_vocabulary_size;
}
const std::string& FgramVocabulary::tokenizer_fingerprint() const {
  return state_->contents.tokenizer_fingerprint;
}

std::string FgramVocabulary::fingerprint() const {
  const FgramVocabularyContents& contents = state_->contents;
  std::uint64_t hash =
      XXH3_64bits_withSeed(contents.prefix.data(), contents.prefix.size() * sizeof(std::int64_t),
                           static_cast<std::uint64_t>(max_length()));
  hash = XXH3_64bits_withSeed(contents.last_token.data(),
                              contents.last_token.size() * sizeof(std::uint32_t), hash);
  return fmt::format("{:016x}", hash);
}

std::int64_t FgramVocabulary::child(std::int32_t first, std::int32_t second) const {
  return state_->find(state_->key_of(-1 - std::int64_t{first}, second));
}
std::int64_t FgramVocabulary::child(std::int64_t prefix_id, std::int32_t token) const {
  return prefix_id < 0 ? -1 : state_->find(state_->key_of(prefix_id, token));
}
std::int64_t FgramVocabulary::prefix(std::int64_t id) const {
  return std::max<std::int64_t>(-1, state_->stored_prefix(id));
}
std::int32_t FgramVocabulary::first_token(std::int64_t id) const {
  return static_cast<std::int32_t>(-1 - state_->stored_prefix(leading_bigram(id)));
}
std::int32_t FgramVocabulary::last_token(std::int64_t id) const {
  return static_cast<std::int32_t>(state_->contents.last_token.at(static_cast<std::size_t>(id)));
}
int FgramVocabulary::length(std::int64_t id) const {
  return state_->contents.length.at(static_cast<std::size_t>(id));
}
std::int64_t FgramVocabulary::count(std::int64_t id) const {
  return static_cast<std::int64_t>(state_->contents.count.at(static_cast<std::size_t>(id)));
}

std::vector<std::int32_t> FgramVocabulary::tokens(std::int64_t id) const {
  std::vector<std::int32_t> result(static_cast<std::size_t>(length(id)));
  for (std::size_t i = result.size(); i-- > 1;) {
    result[i] = last_token(id);
    if (i == 1) result[0] = static_cast<std::int32_t>(-1 - state_->stored_prefix(id));
    id = state_->stored_prefix(id);
  }
  return result;
}

std::int64_t FgramVocabulary::leading_bigram(std::int64_t id) const {
  for (std::int64_t up = state_->stored_prefix(id); up >= 0; up = state_->stored_prefix(id))
    id = up;
  return id;
}

void FgramVocabulary::match(std::span<const std::int32_t> tokens,
                            std::span<std::int64_t> ids) const {
  if (ids.size() != tokens.size()) {
    throw std::invalid_argument("FgramVocabulary::match: tokens and ids differ in size");
  }
  std::fill(ids.begin(), ids.end(), -1);
  // A block of starts grows by one token a round, so that the table's cache misses overlap. Longer
  // matches are written later, and of two that end together the longer has the smaller start.
  constexpr std::size_t block = 64;
  struct Start {
    std::size_t position;
    std::uint64_t key;
    std::int64_t id;
  };
  Start alive[block];
  const auto longest = static_cast<std::size_t>(max_length());
  for (std::size_t begin = 0; begin + 1 < tokens.size(); begin += block) {
    std::size_t count = 0;
    for (; count < block && begin + count + 1 < tokens.size(); ++count) {
      alive[count] = {begin + count, 0, -1 - std::int64_t{tokens[begin + count]}};
    }
    for (std::size_t length = 2; length <= longest && count > 0; ++length) {
      std::size_t kept = 0;
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t end = alive[i].position + length - 1;
        if (end >= tokens.size()) continue;
        Start start = alive[i];
        start.key = state_->key_of(start.id, tokens[end]);
        __builtin_prefetch(&state_->slots[hash_key(start.key) & state_->mask]);
        alive[kept++] = start;
      }
      count = kept;
      kept = 0;
      for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t id = state_->find(alive[i].key);
        if (id < 0) continue;
        const std::size_t end = alive[i].position + length - 1;
        // An earlier block may have written the first longest - 1 ends, from a smaller start.
        const bool taken = ids[end] >= 0 && end < begin + longest - 1 &&
                           state_->contents.length[static_cast<std::size_t>(ids[end])] > length;
        if (!taken) ids[end] = id;
        alive[kept] = alive[i];
        alive[kept++].id = id;
      }
      count = kept;
    }
  }
}

void FgramVocabulary::save(const std::filesystem::path& path) const {
  const FgramVocabularyContents& contents = state_->contents;
  std::filesystem::path partial = path;
  partial += ".partial";
  try {
    const std::vector<std::int64_t> shape{size()};
    std::vector<std::uint64_t> histogram(static_cast<std::size_t>(contents.max_length) + 1, 0);
    for (const std::uint8_t length : contents.length) ++histogram[length];
    Hdf5File file = Hdf5File::create(partial);
    file.set_attribute("format", "scone-fgrams");
    file.set_attribute("format_version", format_version);
    file.set_attribute("tokenizer_fingerprint", contents.tokenizer_fingerprint);
    file.set_attribute("vocabulary_size", contents.token_vocabulary_size);
    file.set_attribute("size", size());
    file.set_attribute("max_length", std::int64_t{contents.max_length});
    file.set_attribute("min_count", contents.min_count);
    file.set_attribute("corpus_fingerprint", contents.corpus_fingerprint);
    file.set_attribute("corpus_tokens", contents.corpus_tokens);
    file.set_attribute("checksum", checksum_of(contents));
    file.write("/prefix", H5T_NATIVE_INT64, shape, contents.prefix.data());
    file.write("/last_token", H5T_NATIVE_UINT32, shape, contents.last_token.data());
    file.write("/length", H5T_NATIVE_UINT8, shape, contents.length.data());
    file.write("/count", H5T_NATIVE_UINT64, shape, contents.count.data());
    file.write("/length_histogram", H5T_NATIVE_UINT64,
               {static_cast<std::int64_t>(histogram.size())}, histogram.data());
    file.close();
    std::filesystem::rename(partial, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw;
  }
}

}  // namespace scone
