#include "data/fgram_vocabulary_builder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "data/fgram_file.h"
#include "data/fgram_ranking.h"
#include "data/fgram_selection.h"
#include "data/memory_budget.h"
#include "data/ngram_key.h"
#include "data/spill_folder.h"
#include "parallel/agreed_errors.h"
#include "parallel/error.h"

namespace scone {
namespace {

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

void check_options(const TokenCorpus& corpus, const FgramBuildOptions& options) {
  if (options.size < 1 || options.size >= std::numeric_limits<std::int32_t>::max()) {
    throw InputError(fmt::format("--size {}: expected 1..{} f-grams", options.size,
                                 std::numeric_limits<std::int32_t>::max() - 1));
  }
  const int most = longest_key_bits / bits_of_token(corpus.vocabulary_size());
  if (options.max_length < 2 || options.max_length > std::min(most, longest_fgram)) {
    throw InputError(
        fmt::format("--max-length {}: expected 2..{}; an f-gram has at least 2 tokens, and of {} "
                    "bits each no more fit a key of {} bits",
                    options.max_length, std::min(most, longest_fgram),
                    bits_of_token(corpus.vocabulary_size()), longest_key_bits));
  }
  if (options.min_count < 1) {
    throw InputError(fmt::format("--min-count {}: expected at least 1", options.min_count));
  }
  if (corpus.vocabulary_size() > largest_token_vocabulary) {
    throw InputError(fmt::format("{}: a vocabulary of {} tokens, expected at most {}",
                                 corpus_name(corpus), corpus.vocabulary_size(),
                                 largest_token_vocabulary));
  }
}

/// Collective: whether the disks of all ranks' folders have room for what each may write.
void check_space(Communicator& communicator, const SpillFolder& spill, std::int64_t needed) {
  struct Need {
    std::int64_t bytes, free;
    char disk[320];
  };
  Need own{needed, 0, {}};
  run_agreed(communicator, [&] {
    own.free = spill.free_bytes();
    spill.disk().copy(own.disk, sizeof(own.disk) - 1);
  });
  std::int64_t on_disk = 0;
  for (const auto& bytes : communicator.all_gather(std::as_bytes(std::span(&own, 1)))) {
    Need other;
    std::memcpy(&other, bytes.data(), sizeof(other));
    if (std::strcmp(other.disk, own.disk) == 0) on_disk += other.bytes;
  }
  run_agreed(communicator, [&] {
    if (on_disk <= own.free) return;
    throw InputError(
        fmt::format("{}: counting may need {:.1f} MB for temporary files, {:.1f} MB are free; give "
                    "--spill a folder on a larger disk, or more --memory",
                    spill.path().parent_path().string(), static_cast<double>(on_disk) / 1e6,
                    static_cast<double>(own.free) / 1e6));
  });
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

FgramBuildResult build_fgram_vocabulary(Communicator& communicator, const TokenCorpus& corpus,
                                        const FgramBuildOptions& options,
                                        const std::filesystem::path& output) {
  check_options(corpus, options);
  const NgramCounterOptions counting{options.max_length, options.min_count, options.memory_bytes,
                                     options.program_bytes, options.progress};
  std::filesystem::path folder = options.spill;
  if (folder.empty()) {
    folder = output;
    folder += ".spill";
  }
  std::optional<SpillFolder> spill;
  run_agreed(communicator,
             [&] { spill.emplace(folder, communicator.rank(), communicator.size()); });
  const int bits = bits_of_token(corpus.vocabulary_size());
  check_space(communicator, *spill,
              estimated_spill_bytes(corpus.tokens() / communicator.size(), bits, counting));
  const std::vector<NgramLevelFile> levels = count_ngrams(communicator, corpus, counting, *spill);
  if (levels.empty()) {
    throw InputError(
        fmt::format("{}: no n-gram of its {} tokens occurs {} times or more inside documents; "
                    "lower --min-count or give more text",
                    corpus_name(corpus), corpus.tokens(), options.min_count));
  }
  const FgramSelection selection = select_fgrams(communicator, levels, bits, options.size);

  FgramBuildResult result;
  result.size = selection.size;
  result.cutoff_count = static_cast<std::int64_t>(selection.cutoff_count);
  result.survivors.assign(static_cast<std::size_t>(options.max_length) + 1, 0);
  result.chosen = result.survivors;
  for (const NgramLevelFile& level : levels) {
    result.survivors[static_cast<std::size_t>(level.length)] = level.total;
    result.total_survivors += level.total;
  }
  FgramHeader header;
  header.tokenizer_fingerprint = corpus.tokenizer_fingerprint();
  header.corpus_fingerprint = corpus.fingerprint();
  header.token_vocabulary_size = corpus.vocabulary_size();
  header.corpus_tokens = corpus.tokens();
  header.min_count = options.min_count;
  header.size = selection.size;
  header.max_length = options.max_length;
  std::unique_ptr<FgramFileWriter> writer;
  run_agreed(communicator, [&] {
    if (communicator.rank() == 0) writer = std::make_unique<FgramFileWriter>(output, header);
  });
  const std::int64_t left =
      std::max<std::int64_t>(options.memory_bytes + options.program_bytes - private_memory_bytes(),
                             std::int64_t{1} << 20U);
  rank_fgrams(communicator, levels, bits, selection, header.token_vocabulary_size, left, *spill,
              [&](const FgramRow& row) {
                writer->add(row);
                ++result.chosen[row.length];
              });
  run_agreed(communicator, [&] {
    if (writer) writer->finish();
  });
  communicator.all_reduce(std::span(result.chosen), ReduceOp::sum);
  return result;
}

}  // namespace scone
