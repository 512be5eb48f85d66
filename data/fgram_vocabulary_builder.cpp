#include "data/fgram_vocabulary_builder.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "parallel/error.h"

namespace scone {
namespace {

constexpr int longest_fgram = 255;  // the file's lengths are one byte

/// The first document that begins at or behind `position`.
std::int64_t first_document_from(const TokenCorpus& corpus, std::int64_t position) {
  std::int64_t low = 0;
  std::int64_t high = corpus.documents();
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (corpus.document(middle).begin < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

std::string corpus_name(const TokenCorpus& corpus) {
  return corpus.shards().empty() ? "corpus" : corpus.shards()[0].path.string();
}

void check_options(const FgramBuildOptions& options) {
  if (options.size < 1 || options.size > std::numeric_limits<std::uint32_t>::max() / 2) {
    throw InputError(fmt::format("--size {}: expected 1..{} f-grams", options.size,
                                 std::numeric_limits<std::uint32_t>::max() / 2));
  }
  if (options.max_length < 2 || options.max_length > longest_fgram) {
    throw InputError(fmt::format("--max-length {}: expected 2..{}; an f-gram has at least 2 tokens",
                                 options.max_length, longest_fgram));
  }
  if (options.min_count < 1) {
    throw InputError(fmt::format("--min-count {}: expected at least 1", options.min_count));
  }
}

}  // namespace

DocumentSlice documents_of_rank(const TokenCorpus& corpus, int rank, int ranks) {
  const std::int64_t tokens = corpus.tokens();
  const auto boundary = [&](int r) {
    return r == ranks
               ? corpus.documents()
               : first_document_from(corpus, tokens / ranks * r + tokens % ranks * r / ranks);
  };
  return {boundary(rank), boundary(rank + 1)};
}

FgramBuildResult choose_fgrams(const std::vector<NgramLevel>& levels,
                               const FgramBuildOptions& options) {
  FgramBuildResult result;
  const auto lengths = static_cast<std::size_t>(options.max_length) + 1;
  result.survivors.assign(lengths, 0);
  result.chosen.assign(lengths, 0);

  struct Candidate {
    std::int64_t count;
    std::uint32_t level;
    std::uint32_t index;  // lexicographic inside a level
    bool operator<(const Candidate& other) const {
      if (count != other.count) return count > other.count;
      if (level != other.level) return level < other.level;
      return index < other.index;
    }
  };
  std::vector<Candidate> ranking;
  for (std::size_t level = 0; level < levels.size(); ++level) {
    result.survivors[level + 2] = levels[level].size();
    result.total_survivors += levels[level].size();
  }
  ranking.reserve(static_cast<std::size_t>(result.total_survivors));
  for (std::size_t level = 0; level < levels.size(); ++level) {
    for (std::size_t i = 0; i < levels[level].counts.size(); ++i) {
      ranking.push_back({levels[level].counts[i], static_cast<std::uint32_t>(level),
                         static_cast<std::uint32_t>(i)});
    }
  }
  const auto size = static_cast<std::size_t>(std::min(options.size, result.total_survivors));
  if (size < ranking.size()) {
    std::nth_element(ranking.begin(), ranking.begin() + static_cast<std::ptrdiff_t>(size),
                     ranking.end());
    ranking.resize(size);
  }
  std::sort(ranking.begin(), ranking.end());
  if (!ranking.empty()) result.cutoff_count = ranking.back().count;

  // A prefix ranks before what it begins: its count is no smaller and it is shorter.
  std::vector<std::vector<std::uint32_t>> id_of(levels.size());
  for (std::size_t level = 0; level < levels.size(); ++level) {
    id_of[level].resize(levels[level].keys.size());
  }
  FgramVocabularyContents& contents = result.contents;
  contents.min_count = options.min_count;
  contents.max_length = options.max_length;
  contents.prefix.reserve(size);
  contents.last_token.reserve(size);
  contents.length.reserve(size);
  contents.count.reserve(size);
  for (std::size_t id = 0; id < size; ++id) {
    const Candidate& chosen = ranking[id];
    id_of[chosen.level][chosen.index] = static_cast<std::uint32_t>(id);
    const std::uint64_t key = levels[chosen.level].keys[chosen.index];
    const auto prefix = static_cast<std::int64_t>(key >> 32U);
    contents.prefix.push_back(
        chosen.level == 0
            ? -1 - prefix
            : std::int64_t{id_of[chosen.level - 1][static_cast<std::size_t>(prefix)]});
    contents.last_token.push_back(static_cast<std::uint32_t>(key));
    contents.length.push_back(static_cast<std::uint8_t>(chosen.level + 2));
    contents.count.push_back(static_cast<std::uint64_t>(chosen.count));
    ++result.chosen[chosen.level + 2];
  }
  return result;
}

FgramBuildResult build_fgram_vocabulary(Communicator& communicator, const TokenCorpus& corpus,
                                        const FgramBuildOptions& options) {
  check_options(options);
  const DocumentSlice slice = documents_of_rank(corpus, communicator.rank(), communicator.size());
  std::vector<std::int64_t> offsets{0};
  offsets.reserve(static_cast<std::size_t>(slice.last - slice.first) + 1);
  for (std::int64_t d = slice.first; d < slice.last; ++d) {
    const TokenCorpus::Range range = corpus.document(d);
    offsets.push_back(offsets.back() + range.end - range.begin);
  }
  const NgramCounterOptions counting{options.max_length, options.min_count, options.progress};
  // The largest slice decides, so that all ranks agree.
  const std::int64_t largest = communicator.all_reduce_value(offsets.back(), ReduceOp::max);
  // Choosing follows counting: levels 16, ranking 16 and ids 4 a survivor; contents 21 and table
  // slots 48 an f-gram.
  const std::int64_t survivors = corpus.tokens() / options.min_count * (options.max_length - 1);
  const std::int64_t choosing =
      4 * largest + 36 * survivors + 69 * std::min(options.size, survivors);
  const std::int64_t needed = std::max(
      choosing, ngram_counter_bytes(largest, corpus.tokens(), communicator.size(), counting));
  if (needed > options.memory_bytes) {
    throw InputError(
        fmt::format("{}: counting {} tokens on {} ranks needs up to {:.1f} MB a rank, --memory "
                    "allows {:.1f} MB; give --memory "
                    "{}M or more, more ranks, or a larger --min-count",
                    corpus_name(corpus), corpus.tokens(), communicator.size(),
                    static_cast<double>(needed) / 1e6,
                    static_cast<double>(options.memory_bytes) / 1e6, needed / 1'000'000 + 1));
  }
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(offsets.back()));
  if (!tokens.empty()) corpus.read(corpus.document(slice.first).begin, tokens);
  const std::vector<NgramLevel> levels = count_ngrams(communicator, tokens, offsets, counting);
  if (levels.empty()) {
    throw InputError(
        fmt::format("{}: no n-gram of its {} tokens occurs {} times or more inside documents; "
                    "lower --min-count or give more text",
                    corpus_name(corpus), corpus.tokens(), options.min_count));
  }
  FgramBuildResult result = choose_fgrams(levels, options);
  result.contents.tokenizer_fingerprint = corpus.tokenizer_fingerprint();
  result.contents.corpus_fingerprint = corpus.fingerprint();
  result.contents.token_vocabulary_size = corpus.vocabulary_size();
  result.contents.corpus_tokens = corpus.tokens();
  return result;
}

}  // namespace scone
