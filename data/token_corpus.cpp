#include "data/token_corpus.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "data/hdf5_file.h"
#include "data/mapped_file.h"
#include "data/shard_list.h"
#include "data/token_shard.h"
#include "parallel/error.h"

namespace scone {
namespace {

struct Shard {
  ShardInfo info;
  std::unique_ptr<MappedFile> file;
  const std::byte* tokens = nullptr;
  std::size_t token_bytes = 2;
  const std::byte* offsets = nullptr;     // int64 [info.documents + 1], not aligned
  std::vector<std::int64_t> own_offsets;  // where they cannot be mapped as they lie in the file
  std::int64_t documents = 0;             // that are not empty
  std::vector<std::int64_t> filled;       // their numbers, where there are others
  std::int64_t first_token = 0, first_document = 0;  // of the corpus

  std::int64_t offset(std::int64_t document) const {
    std::int64_t value;
    std::memcpy(&value, offsets + 8 * document, sizeof value);
    return value;
  }
  /// The document that holds token `local` of the shard: the last one that begins there or before.
  /// Of those that begin at one place the last is the one that is not empty.
  std::int64_t find_document(std::int64_t local) const {
    std::int64_t document = 0, beyond = info.documents;
    while (beyond - document > 1) {
      const std::int64_t middle = document + (beyond - document) / 2;
      const bool before = offset(middle) <= local;
      document = before ? middle : document;  // without a branch: it could not be foreseen
      beyond = before ? beyond : middle;
    }
    return document;
  }
  TokenCorpus::Range range(std::int64_t document) const {
    return {first_token + offset(document), first_token + offset(document + 1)};
  }
};

/// Maps the offsets, checks that they ascend, and finds the documents that are empty.
void open_offsets(const Hdf5File& file, Shard& shard) {
  const ShardInfo& info = shard.info;
  const std::int64_t place =
      file.is_int64("document_offsets") ? file.dataset_offset("document_offsets") : -1;
  if (place >= 0 && info.documents < (shard.file->bytes() - place) / 8) {
    shard.offsets = shard.file->data() + place;
  } else {
    shard.own_offsets.resize(static_cast<std::size_t>(info.documents) + 1);
    file.read("document_offsets", H5T_NATIVE_INT64, shard.own_offsets.data());
    shard.offsets = reinterpret_cast<const std::byte*>(shard.own_offsets.data());
  }
  bool good = shard.offset(0) == 0 && shard.offset(info.documents) == info.tokens;
  std::int64_t empty = 0;
  for (std::int64_t d = 0; d < info.documents; ++d) {
    good = good && shard.offset(d) <= shard.offset(d + 1);
    empty += shard.offset(d) == shard.offset(d + 1);
  }
  if (!good)
    throw InputError(
        fmt::format("{}: document offsets do not ascend from 0 to {}; the shard is damaged",
                    info.path.string(), info.tokens));
  shard.documents = info.documents - empty;
  if (empty == 0) return;
  for (std::int64_t d = 0; d < info.documents; ++d) {
    if (shard.offset(d + 1) > shard.offset(d)) shard.filled.push_back(d);
  }
}

std::string checksum_of(const Shard& shard) {
  const auto& info = shard.info;
  return shard_checksum(
      {shard.tokens, static_cast<std::size_t>(info.tokens) * shard.token_bytes},
      {shard.offsets, static_cast<std::size_t>(info.documents + 1) * sizeof(std::int64_t)});
}

Shard open_shard(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  if (!file.has_attribute("format") || file.string_attribute("format") != kTokenShardFormat)
    throw InputError(fmt::format(
        "{}: not a token shard of `scone tokenize` (attribute 'format' should be 'scone-tokens')",
        path.string()));
  if (const auto version = file.integer_attribute("format_version"); version != 1)
    throw InputError(
        fmt::format("{}: token shard of format version {}, this program reads version 1",
                    path.string(), version));
  Shard shard;
  ShardInfo& info = shard.info;
  info.path = path;
  info.tokenizer_fingerprint = file.string_attribute("tokenizer_fingerprint");
  info.vocabulary_size = file.integer_attribute("vocabulary_size");
  info.end_of_document = static_cast<std::int32_t>(file.integer_attribute("end_of_document"));
  info.tokens = file.integer_attribute("tokens");
  info.documents = file.integer_attribute("documents");
  info.text_bytes = file.integer_attribute("text_bytes");
  info.checksum = file.string_attribute("checksum");
  const auto tokens_shape = file.dataset_shape("tokens");
  const auto offsets_shape = file.dataset_shape("document_offsets");
  if (info.vocabulary_size < 1 || info.vocabulary_size > INT32_MAX || info.tokens < 0 ||
      info.documents < 0 || tokens_shape != std::vector<std::int64_t>{info.tokens} ||
      offsets_shape != std::vector<std::int64_t>{info.documents + 1})
    throw InputError(
        fmt::format("{}: attributes say {} tokens and {} documents of a vocabulary of {}, the "
                    "datasets differ; the shard is damaged",
                    path.string(), info.tokens, info.documents, info.vocabulary_size));
  shard.token_bytes = file.unsigned_element_bytes("tokens");
  if (shard.token_bytes != 2 && shard.token_bytes != 4)
    throw InputError(fmt::format(
        "{}: dataset 'tokens' should hold uint16 or uint32, little-endian; it holds another type",
        path.string()));
  shard.file = std::make_unique<MappedFile>(path);
  const std::int64_t offset = info.tokens == 0 ? 0 : file.dataset_offset("tokens");
  const auto width = static_cast<std::int64_t>(shard.token_bytes);
  if (offset < 0 || offset > shard.file->bytes() ||
      info.tokens > (shard.file->bytes() - offset) / width)
    throw InputError(fmt::format("{}: token dataset is not contiguous, or the file is truncated",
                                 path.string()));
  shard.tokens = shard.file->data() + offset;
  open_offsets(file, shard);
  return shard;
}

std::vector<std::filesystem::path> shard_files(const std::vector<std::filesystem::path>& paths) {
  std::set<std::filesystem::path> files;
  for (const auto& path : paths) {
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
      std::size_t found = 0;
      if (!std::filesystem::exists(path / kShardListName, error) &&
          std::filesystem::exists(path / "train" / kShardListName, error)) {
        throw InputError(fmt::format(
            "{}: expected a folder of token shards, found one with a folder of them for training "
            "and one for validation; give {} or {}",
            path.string(), (path / "train").string(), (path / "validation").string()));
      }
      for (const auto& entry : std::filesystem::directory_iterator(path)) {
        if (entry.path().extension() != ".h5") continue;
        files.insert(std::filesystem::weakly_canonical(entry.path()));
        ++found;
      }
      if (found == 0)
        throw InputError(fmt::format(
            "{}: holds no token shards (*.h5); `scone tokenize` writes them", path.string()));
    } else if (std::filesystem::exists(path, error)) {
      files.insert(std::filesystem::weakly_canonical(path));
    } else {
      throw InputError(fmt::format("{}: no such file or folder of token shards", path.string()));
    }
  }
  if (files.empty()) throw InputError("no token shards were given");
  return {files.begin(), files.end()};
}

/// Whether the file was last changed after the folder's list of shards was written, or in the same
/// tick of the file system's clock.
bool is_newer_than_list(const std::filesystem::path& shard, const std::filesystem::path& folder) {
  std::error_code error;
  const auto list_time = std::filesystem::last_write_time(folder / kShardListName, error);
  return !error && std::filesystem::last_write_time(shard, error) >= list_time && !error;
}

/// How the shards of a folder differ from the list beside them. A shard written after the list is
/// hashed again, whatever its attribute says.
std::vector<std::string> folder_changes(const std::filesystem::path& folder,
                                        std::vector<Shard>& shards) {
  std::vector<std::string> changes;
  const std::vector<ListedShard> listed = read_shard_list(folder);
  if (listed.empty()) return changes;
  const auto place = std::filesystem::weakly_canonical(folder);
  std::vector<ListedShard> found;
  for (Shard& shard : shards) {
    ShardInfo& info = shard.info;
    if (info.path.parent_path() != place) continue;
    if (is_newer_than_list(info.path, folder)) info.checksum = checksum_of(shard);
    found.push_back({info.path.filename().string(), info.tokens, info.checksum});
  }
  for (const std::string& change : shard_changes(listed, found))
    changes.push_back((folder / change).string());
  return changes;
}

/// Lines that name the shards of other tokenizers than the first one's.
std::vector<std::string> foreign_tokenizers(const std::vector<Shard>& shards) {
  std::vector<std::string> problems;
  const ShardInfo& first = shards.front().info;
  for (const Shard& shard : shards) {
    const ShardInfo& info = shard.info;
    if (info.tokenizer_fingerprint != first.tokenizer_fingerprint ||
        info.vocabulary_size != first.vocabulary_size ||
        info.end_of_document != first.end_of_document)
      problems.push_back(fmt::format(
          "{}: tokenized with tokenizer {} ({} tokens, end of document {}), but {} with {} ({} "
          "tokens, end of document {})",
          info.path.string(), info.tokenizer_fingerprint, info.vocabulary_size,
          info.end_of_document, first.path.string(), first.tokenizer_fingerprint,
          first.vocabulary_size, first.end_of_document));
  }
  return problems;
}

std::vector<Shard> open_shards(const std::vector<std::filesystem::path>& paths) {
  std::vector<Shard> shards;
  std::vector<std::string> problems;
  for (const auto& path : shard_files(paths)) {
    try {
      shards.push_back(open_shard(path));
    } catch (const InputError& error) {
      problems.emplace_back(error.what());
    }
  }
  if (problems.size() == 1) throw InputError(problems.front());
  if (!problems.empty())
    throw InputError(
        fmt::format("{} shards cannot be used:{}", problems.size(), format_changes(problems)));
  problems = foreign_tokenizers(shards);
  if (problems.size() == 1) throw InputError(problems.front() + "; tokenize all with one");
  if (!problems.empty())
    throw InputError(fmt::format("shards of different tokenizers; tokenize all with one:{}",
                                 format_changes(problems)));
  return shards;
}

/// body(tokens), where they begin as uint16 or uint32 at token `begin` of the shard.
template <class Body>
std::uint32_t with_tokens(const Shard& shard, std::int64_t begin, const Body& body) {
  return shard.token_bytes == 2
             ? body(reinterpret_cast<const std::uint16_t*>(shard.tokens) + begin)
             : body(reinterpret_cast<const std::uint32_t*>(shard.tokens) + begin);
}

void check_ids(const Shard& shard, std::uint32_t largest, std::int64_t begin, std::int64_t end) {
  if (largest < static_cast<std::uint64_t>(shard.info.vocabulary_size)) return;
  throw InputError(fmt::format(
      "{}: token id {} between tokens {} and {}, but the vocabulary has {}; the shard is damaged",
      shard.info.path.string(), largest, begin, end, shard.info.vocabulary_size));
}

/// The shard that holds `value` of an ascending member: the last one that does not begin after it.
const Shard& shard_of(const std::vector<Shard>& shards, std::int64_t Shard::*first,
                      std::int64_t value) {
  const auto next = std::upper_bound(
      shards.begin(), shards.end(), value,
      [first](std::int64_t wanted, const Shard& shard) { return wanted < shard.*first; });
  return *(next - 1);
}

}  // namespace

struct TokenCorpus::State {
  std::vector<Shard> shards;
  std::vector<ShardInfo> infos;
  std::int64_t tokens = 0, documents = 0;
  std::vector<std::string> changes;
};

TokenCorpus::TokenCorpus(const std::vector<std::filesystem::path>& paths, ChangedShards changed)
    : state_(std::make_unique<State>()) {
  state_->shards = open_shards(paths);
  for (const auto& path : paths) {
    if (!std::filesystem::is_directory(path)) continue;
    const auto changes = folder_changes(path, state_->shards);
    state_->changes.insert(state_->changes.end(), changes.begin(), changes.end());
  }
  if (!state_->changes.empty() && changed == ChangedShards::refuse)
    throw InputError(fmt::format(
        "shards are not those that `scone tokenize` listed beside them ({}):{}\nset them back, "
        "tokenize again, or name the wanted shards one by one (`scone train` takes them as they "
        "are with --allow-changed-data)",
        kShardListName, format_changes(state_->changes)));
  for (Shard& shard : state_->shards) {
    shard.first_token = state_->tokens;
    shard.first_document = state_->documents;
    state_->tokens += shard.info.tokens;
    state_->documents += shard.documents;
    state_->infos.push_back(shard.info);
  }
}

TokenCorpus::~TokenCorpus() = default;

const std::vector<ShardInfo>& TokenCorpus::shards() const { return state_->infos; }
const std::vector<std::string>& TokenCorpus::changes() const { return state_->changes; }
std::int64_t TokenCorpus::tokens() const { return state_->tokens; }
std::int64_t TokenCorpus::documents() const { return state_->documents; }
std::int64_t TokenCorpus::vocabulary_size() const { return state_->infos.front().vocabulary_size; }
const std::string& TokenCorpus::tokenizer_fingerprint() const {
  return state_->infos.front().tokenizer_fingerprint;
}

std::string TokenCorpus::fingerprint() const {
  std::string all;
  for (const auto& info : state_->infos) all += info.checksum + ";";
  return fmt::format("{:016x}", XXH3_64bits(all.data(), all.size()));
}

std::filesystem::path TokenCorpus::tokenizer_path() const {
  const auto folder = std::filesystem::absolute(state_->infos.front().path).parent_path();
  for (const auto& place : {folder, folder.parent_path()})
    for (const char* name : {"tokenizer.model", "tokenizer.json"})
      if (std::filesystem::exists(place / name)) return place / name;
  throw InputError(
      fmt::format("{}: no tokenizer.model or tokenizer.json in this folder or above; it travels "
                  "with the shards",
                  folder.string()));
}

void TokenCorpus::read(std::int64_t first, std::span<std::int32_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  if (first < 0 || first + count > tokens())
    throw std::out_of_range(
        fmt::format("tokens {}..{} of a corpus of {}", first, first + count, tokens()));
  if (count == 0) return;
  const Shard* shard = &shard_of(state_->shards, &Shard::first_token, first);
  for (std::int64_t done = 0; done < count; ++shard) {
    const std::int64_t begin = first + done - shard->first_token;
    const std::int64_t here = std::min(count - done, shard->info.tokens - begin);
    if (here <= 0) continue;
    std::int32_t* target = out.data() + done;
    const std::uint32_t largest = with_tokens(*shard, begin, [&](const auto* source) {
      std::uint32_t most = 0;
      for (std::int64_t i = 0; i < here; ++i) {
        const std::uint32_t id = source[i];
        target[i] = static_cast<std::int32_t>(id);
        most = std::max(most, id);
      }
      return most;
    });
    check_ids(*shard, largest, begin, begin + here);
    done += here;
  }
}

void TokenCorpus::read_window(std::int64_t first, std::span<std::int32_t> inputs,
                              std::span<std::int32_t> targets) const {
  const auto count = static_cast<std::int64_t>(inputs.size());
  if (count == 0) return;
  const Shard* shard = nullptr;
  if (first >= 0 && first + count < tokens())
    shard = &shard_of(state_->shards, &Shard::first_token, first);
  if (shard == nullptr || first + count >= shard->first_token + shard->info.tokens) {
    // Across shards, or out of range.
    read(first, inputs);
    std::copy(inputs.begin() + 1, inputs.end(), targets.begin());
    read(first + count, targets.last(1));
    return;
  }
  const std::int64_t begin = first - shard->first_token;
  std::int32_t* const input = inputs.data();
  std::int32_t* const target = targets.data();
  const std::uint32_t largest = with_tokens(*shard, begin, [&](const auto* source) {
    // Two passes over pieces that stay in the nearest cache: each is a plain vector loop, the
    // comparison in the stored type.
    constexpr std::int64_t piece = 4096;
    auto most = source[count];
    for (std::int64_t at = 0; at < count; at += piece) {
      const std::int64_t end = std::min(count, at + piece);
      for (std::int64_t i = at; i < end; ++i) most = std::max(most, source[i]);
      for (std::int64_t i = at; i < end; ++i) {
        input[i] = static_cast<std::int32_t>(source[i]);
        target[i] = static_cast<std::int32_t>(source[i + 1]);
      }
    }
    return std::uint32_t{most};
  });
  check_ids(*shard, largest, begin, begin + count + 1);
}

void TokenCorpus::will_read(std::int64_t first, std::int64_t count) const {
  for_each_part(first, count, [](const MappedFile& file, std::int64_t offset, std::int64_t bytes) {
    file.will_read(offset, bytes);
    return true;
  });
}

bool TokenCorpus::is_cached(std::int64_t first, std::int64_t count) const {
  return for_each_part(first, count,
                       [](const MappedFile& file, std::int64_t offset, std::int64_t bytes) {
                         return file.is_cached(offset, bytes);
                       });
}

template <class Visit>
bool TokenCorpus::for_each_part(std::int64_t first, std::int64_t count, const Visit& visit) const {
  first = std::clamp<std::int64_t>(first, 0, tokens());
  count = std::clamp<std::int64_t>(count, 0, tokens() - first);
  if (count == 0) return true;
  const Shard* shard = &shard_of(state_->shards, &Shard::first_token, first);
  for (std::int64_t done = 0; done < count; ++shard) {
    const std::int64_t begin = first + done - shard->first_token;
    const std::int64_t here = std::min(count - done, shard->info.tokens - begin);
    if (here <= 0) continue;
    const auto width = static_cast<std::int64_t>(shard->token_bytes);
    if (!visit(*shard->file, shard->tokens - shard->file->data() + begin * width, here * width))
      return false;
    done += here;
  }
  return true;
}

TokenCorpus::Range TokenCorpus::document_of(std::int64_t position) const {
  if (position < 0 || position >= tokens())
    throw std::out_of_range(fmt::format("token {} of a corpus of {}", position, tokens()));
  const Shard& shard = shard_of(state_->shards, &Shard::first_token, position);
  return shard.range(shard.find_document(position - shard.first_token));
}

void TokenCorpus::document_ends(std::int64_t first, std::int64_t count,
                                std::vector<std::int64_t>& ends) const {
  ends.clear();
  if (count == 0) return;
  if (first < 0 || count > tokens() - first)
    throw std::out_of_range(
        fmt::format("tokens {}..{} of a corpus of {}", first, first + count, tokens()));
  const std::int64_t beyond = first + count;
  for (const Shard* shard = &shard_of(state_->shards, &Shard::first_token, first); first < beyond;
       ++shard) {
    if (first - shard->first_token >= shard->info.tokens) continue;  // an empty shard
    for (std::int64_t d = shard->find_document(first - shard->first_token);
         d < shard->info.documents && first < beyond; ++d) {
      const std::int64_t end = shard->first_token + shard->offset(d + 1);
      if (end == first) continue;  // an empty document
      ends.push_back(end);
      first = end;
    }
  }
}

TokenCorpus::Range TokenCorpus::document(std::int64_t index) const {
  if (index < 0 || index >= documents())
    throw std::out_of_range(fmt::format("document {} of a corpus of {}", index, documents()));
  const Shard& shard = shard_of(state_->shards, &Shard::first_document, index);
  const std::int64_t local = index - shard.first_document;
  return shard.range(shard.filled.empty() ? local : shard.filled[static_cast<std::size_t>(local)]);
}

}  // namespace scone
