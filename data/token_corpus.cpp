#include "data/token_corpus.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "data/hdf5_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

/// A whole file mapped read-only.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
      throw InputError(
          fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
    bytes_ = static_cast<std::size_t>(std::filesystem::file_size(path));
    void* address = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
    ::close(descriptor);
    if (address == MAP_FAILED)
      throw InputError(
          fmt::format("{}: cannot be mapped: {}", path.string(), std::strerror(errno)));
    data_ = static_cast<const std::byte*>(address);
  }
  ~MappedFile() { ::munmap(const_cast<std::byte*>(data_), bytes_); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

struct Shard {
  ShardInfo info;
  std::unique_ptr<MappedFile> file;
  const std::byte* tokens = nullptr;
  std::size_t token_bytes = 2;
  std::int64_t first_token = 0;  // of the corpus
};

Shard open_shard(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  if (!file.has_attribute("format") || file.string_attribute("format") != "scone-tokens")
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
  const auto needed = static_cast<std::size_t>(info.tokens) * shard.token_bytes;
  if (offset < 0 || static_cast<std::size_t>(offset) + needed > shard.file->bytes())
    throw InputError(fmt::format("{}: token dataset is not contiguous, or the file is truncated",
                                 path.string()));
  shard.tokens = shard.file->data() + offset;
  return shard;
}

std::vector<std::filesystem::path> shard_files(const std::vector<std::filesystem::path>& paths) {
  std::set<std::filesystem::path> files;
  for (const auto& path : paths) {
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
      std::size_t found = 0;
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

}  // namespace

struct TokenCorpus::State {
  std::vector<Shard> shards;
  std::vector<ShardInfo> infos;
  std::vector<std::int64_t> document_starts;  // of the corpus, and its end
};

TokenCorpus::TokenCorpus(const std::vector<std::filesystem::path>& paths)
    : state_(std::make_unique<State>()) {
  std::int64_t first_token = 0;
  for (const auto& path : shard_files(paths)) {
    Shard shard = open_shard(path);
    const ShardInfo& info = shard.info;
    shard.first_token = first_token;
    if (!state_->infos.empty()) {
      const ShardInfo& first = state_->infos.front();
      if (info.tokenizer_fingerprint != first.tokenizer_fingerprint ||
          info.vocabulary_size != first.vocabulary_size ||
          info.end_of_document != first.end_of_document)
        throw InputError(
            fmt::format("{}: tokenized with tokenizer {} ({} tokens), but {} with {} ({} tokens); "
                        "tokenize all with one",
                        path.string(), info.tokenizer_fingerprint, info.vocabulary_size,
                        first.path.string(), first.tokenizer_fingerprint, first.vocabulary_size));
    }
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(info.documents) + 1);
    Hdf5File::open(path).read("document_offsets", H5T_NATIVE_INT64, offsets.data());
    if (offsets.front() != 0 || offsets.back() != info.tokens ||
        !std::is_sorted(offsets.begin(), offsets.end()))
      throw InputError(
          fmt::format("{}: document offsets do not ascend from 0 to {}; the shard is damaged",
                      path.string(), info.tokens));
    for (std::size_t d = 0; d + 1 < offsets.size(); ++d)
      if (offsets[d] < offsets[d + 1])  // empty documents have no position
        state_->document_starts.push_back(first_token + offsets[d]);
    first_token += info.tokens;
    state_->infos.push_back(info);
    state_->shards.push_back(std::move(shard));
  }
  state_->document_starts.push_back(first_token);
}

TokenCorpus::~TokenCorpus() = default;

const std::vector<ShardInfo>& TokenCorpus::shards() const { return state_->infos; }
std::int64_t TokenCorpus::tokens() const { return state_->document_starts.back(); }
std::int64_t TokenCorpus::documents() const {
  return static_cast<std::int64_t>(state_->document_starts.size()) - 1;
}
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
  auto shard = std::upper_bound(
      state_->shards.begin(), state_->shards.end(), first,
      [](std::int64_t position, const Shard& s) { return position < s.first_token; });
  if (shard != state_->shards.begin()) --shard;
  std::int64_t done = 0;
  for (; done < count; ++shard) {
    const std::int64_t begin = first + done - shard->first_token;
    const std::int64_t here = std::min(count - done, shard->info.tokens - begin);
    if (here <= 0) continue;
    std::int32_t* target = out.data() + done;
    std::uint32_t largest = 0;
    auto copy = [&](const auto* source) {
      for (std::int64_t i = 0; i < here; ++i) {
        const std::uint32_t id = source[begin + i];
        target[i] = static_cast<std::int32_t>(id);
        largest = std::max(largest, id);
      }
    };
    if (shard->token_bytes == 2) {
      copy(reinterpret_cast<const std::uint16_t*>(shard->tokens));
    } else {
      copy(reinterpret_cast<const std::uint32_t*>(shard->tokens));
    }
    if (largest >= static_cast<std::uint64_t>(shard->info.vocabulary_size))
      throw InputError(fmt::format(
          "{}: token id {} between tokens {} and {}, but the vocabulary has {}; the shard is "
          "damaged",
          shard->info.path.string(), largest, begin, begin + here, shard->info.vocabulary_size));
    done += here;
  }
}

TokenCorpus::Range TokenCorpus::document_of(std::int64_t position) const {
  if (position < 0 || position >= tokens())
    throw std::out_of_range(fmt::format("token {} of a corpus of {}", position, tokens()));
  const auto& starts = state_->document_starts;
  const auto next = std::upper_bound(starts.begin(), starts.end(), position);
  return {*(next - 1), *next};
}

TokenCorpus::Range TokenCorpus::document(std::int64_t index) const {
  const auto& starts = state_->document_starts;
  const auto i = static_cast<std::size_t>(index);
  return {starts.at(i), starts.at(i + 1)};
}

}  // namespace scone
