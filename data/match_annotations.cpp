#include "data/match_annotations.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <string>

#include "data/hdf5_file.h"
#include "data/loop_errors.h"
#include "data/mapped_file.h"
#include "parallel/agreed_errors.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::int64_t format_version = 1;
constexpr std::int64_t block_tokens = 4 * 1024 * 1024;  // annotated before they are written

/// Of documents [first, last), which begin at token `begin`: the lengths of their matches.
std::vector<std::uint8_t> lengths_of(const TokenCorpus& corpus, const FgramVocabulary& vocabulary,
                                     std::int64_t first, std::int64_t last) {
  const std::int64_t begin = corpus.document(first).begin;
  std::vector<std::uint8_t> lengths(
      static_cast<std::size_t>(corpus.document(last - 1).end - begin));
  LoopErrors errors;
#pragma omp parallel
  {
    std::vector<std::int32_t> tokens;
    std::vector<std::int64_t> ids;
#pragma omp for schedule(dynamic, 16)
    for (std::int64_t d = first; d < last; ++d) {
      errors.guard([&] {
        const TokenCorpus::Range range = corpus.document(d);
        tokens.resize(static_cast<std::size_t>(range.end - range.begin));
        ids.resize(tokens.size());
        corpus.read(range.begin, tokens);
        vocabulary.match(tokens, ids,
                         std::span(lengths).subspan(static_cast<std::size_t>(range.begin - begin),
                                                    tokens.size()));
      });
    }
  }
  errors.rethrow();
  return lengths;
}

void check_format(const Hdf5File& file, const std::filesystem::path& path) {
  if (file.has_attribute("format") && file.string_attribute("format") == "scone-matches" &&
      file.integer_attribute("format_version") == format_version)
    return;
  throw InputError(
      fmt::format("{}: not an annotation of `scone fgrams --annotate` of format version {}; remove "
                  "it, or make it again",
                  path.string(), format_version));
}

Hdf5File open_annotation(const std::filesystem::path& path) {
  try {
    return Hdf5File::open(path);
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}; remove it, or make it again with `scone fgrams --annotate`",
                                 error.what()));
  }
}

/// Where the lengths lie in the file's mapping.
const std::byte* mapped_lengths(const Hdf5File& file, const MappedFile& mapping,
                                const std::filesystem::path& path, std::int64_t tokens) {
  const std::int64_t offset = file.dataset_offset("/match_length");
  if (tokens < 0 || file.dataset_shape("/match_length") != std::vector<std::int64_t>{tokens} ||
      file.unsigned_element_bytes("/match_length") != 1 || offset < 0 ||
      static_cast<std::size_t>(offset) > mapping.all().size() ||
      mapping.all().size() - static_cast<std::size_t>(offset) < static_cast<std::size_t>(tokens)) {
    throw InputError(fmt::format(
        "{}: /match_length is not {} contiguous bytes; remove the file, or make it again",
        path.string(), tokens));
  }
  return mapping.data() + offset;
}

/// The documents of the shard whose tokens are [begin, end) of the corpus.
void annotate_shard(const TokenCorpus& corpus, const FgramVocabulary& vocabulary,
                    const ShardInfo& shard, std::int64_t document, std::int64_t begin,
                    std::int64_t end) {
  const std::filesystem::path path = annotation_path(shard.path);
  std::filesystem::path partial = path;
  partial += ".partial";
  try {
    Hdf5File file = Hdf5File::create(partial);
    file.create_dataset("/match_length", H5T_NATIVE_UINT8, {shard.tokens});
    const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                                XXH3_freeState);
    XXH3_64bits_reset(state.get());
    for (std::int64_t done = begin; done < end;) {
      std::int64_t last = document;
      while (last < corpus.documents() && corpus.document(last).begin < end &&
             corpus.document(last).begin - done < block_tokens)
        ++last;
      const std::vector<std::uint8_t> lengths = lengths_of(corpus, vocabulary, document, last);
      file.write_part("/match_length", H5T_NATIVE_UINT8, done - begin,
                      static_cast<std::int64_t>(lengths.size()), lengths.data());
      XXH3_64bits_update(state.get(), lengths.data(), lengths.size());
      done += static_cast<std::int64_t>(lengths.size());
      document = last;
    }
    file.set_attribute("format", "scone-matches");
    file.set_attribute("format_version", format_version);
    file.set_attribute("tokens", shard.tokens);
    file.set_attribute("shard_checksum", shard.checksum);
    file.set_attribute("fgrams_fingerprint", vocabulary.fingerprint());
    file.set_attribute("fgrams_size", vocabulary.size());
    file.set_attribute("fgrams_max_length", std::int64_t{vocabulary.max_length()});
    file.set_attribute("checksum", fmt::format("{:016x}", XXH3_64bits_digest(state.get())));
    file.close();
    std::filesystem::rename(partial, path);
  } catch (const InputError&) {
    throw;
  } catch (const std::exception& error) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    const auto space = std::filesystem::space(shard.path.parent_path(), ignored);
    throw InputError(
        fmt::format("{}: the annotation cannot be written: {}; it needs {:.1f} MB, {:.1f} MB are "
                    "free",
                    path.string(), error.what(), static_cast<double>(shard.tokens) / 1e6,
                    static_cast<double>(space.available) / 1e6));
  }
}

}  // namespace

std::filesystem::path annotation_path(const std::filesystem::path& shard) {
  std::filesystem::path path = shard;
  path += ".matches";
  return path;
}

void write_match_annotations(Communicator& communicator, const TokenCorpus& corpus,
                             const FgramVocabulary& vocabulary) {
  run_agreed(communicator, [&] {
    if (vocabulary.tokenizer_fingerprint() != corpus.tokenizer_fingerprint()) {
      throw InputError(fmt::format(
          "{}: the shards' tokenizer is {}, the f-gram vocabulary's {}; give shards of one",
          corpus.shards().front().path.string(), corpus.tokenizer_fingerprint(),
          vocabulary.tokenizer_fingerprint()));
    }
    std::int64_t begin = 0, document = 0;
    for (std::size_t s = 0; s < corpus.shards().size(); ++s) {
      const ShardInfo& shard = corpus.shards()[s];
      const std::int64_t end = begin + shard.tokens;
      if (static_cast<int>(s) % communicator.size() == communicator.rank())
        annotate_shard(corpus, vocabulary, shard, document, begin, end);
      while (document < corpus.documents() && corpus.document(document).begin < end) ++document;
      begin = end;
    }
  });
}

AnnotationInfo verify_annotation(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  check_format(file, path);
  AnnotationInfo info;
  info.tokens = file.integer_attribute("tokens");
  info.fgrams_size = file.integer_attribute("fgrams_size");
  info.fgrams_max_length = file.integer_attribute("fgrams_max_length");
  info.fgrams_fingerprint = file.string_attribute("fgrams_fingerprint");
  info.shard_checksum = file.string_attribute("shard_checksum");
  const MappedFile mapping(path);
  const std::byte* lengths = mapped_lengths(file, mapping, path, info.tokens);
  const std::string found =
      fmt::format("{:016x}", XXH3_64bits(lengths, static_cast<std::size_t>(info.tokens)));
  if (const std::string expected = file.string_attribute("checksum"); expected != found) {
    throw InputError(fmt::format("{}: expected checksum {}, found {}: make the file again",
                                 path.string(), expected, found));
  }
  return info;
}

struct MatchAnnotations::Shard {
  std::int64_t begin;  // its first token in the corpus
  std::filesystem::path path;
  std::unique_ptr<MappedFile> file;  // null: matched by looking all up
  const std::uint8_t* lengths = nullptr;
};

MatchAnnotations::MatchAnnotations(const TokenCorpus& corpus, const FgramMatcher& matcher)
    : matcher_(matcher) {
  std::int64_t begin = 0;
  std::string fingerprint;
  for (const ShardInfo& info : corpus.shards()) {
    Shard& shard = shards_.emplace_back(Shard{begin, annotation_path(info.path), nullptr, nullptr});
    begin += info.tokens;
    std::error_code error;
    if (info.tokens == 0 || !std::filesystem::exists(shard.path, error)) continue;
    const Hdf5File file = open_annotation(shard.path);
    check_format(file, shard.path);
    if (fingerprint.empty()) fingerprint = matcher.fingerprint();
    if (file.string_attribute("fgrams_fingerprint") != fingerprint ||
        file.string_attribute("shard_checksum") != info.checksum)
      continue;
    shard.file = std::make_unique<MappedFile>(shard.path);
    shard.lengths = reinterpret_cast<const std::uint8_t*>(
        mapped_lengths(file, *shard.file, shard.path, info.tokens));
    annotated_tokens_ += info.tokens;
  }
}

MatchAnnotations::~MatchAnnotations() = default;

void MatchAnnotations::match(std::int64_t first, std::span<const std::int32_t> tokens,
                             std::span<std::int64_t> ids) const {
  const auto after =
      std::upper_bound(shards_.begin(), shards_.end(), first,
                       [](std::int64_t at, const Shard& shard) { return at < shard.begin; });
  const Shard& shard = *(after - 1);
  if (shard.lengths == nullptr) {
    matcher_.match(tokens, ids);
    return;
  }
  const std::uint8_t* known = shard.lengths + (first - shard.begin);
  std::vector<std::uint8_t> lengths(known, known + tokens.size());
  // The piece may begin inside its document: matches from before its begin are found shorter.
  const std::size_t head =
      std::min(tokens.size(), static_cast<std::size_t>(std::max(1, matcher_.max_length()) - 1));
  matcher_.match(tokens.first(head), ids.first(head), std::span(lengths).first(head));
  const std::size_t misfit = matcher_.match_of_lengths(tokens, lengths, ids);
  if (misfit < tokens.size()) {
    throw InputError(
        fmt::format("{}: a match of {} tokens is told at token {} of the shard, the f-gram "
                    "vocabulary has none; "
                    "the file is damaged, make it again",
                    shard.path.string(), lengths[misfit],
                    first - shard.begin + static_cast<std::int64_t>(misfit)));
  }
}

}  // namespace scone
