#include "data/fgram_statistics.h"

#include <algorithm>

#include "data/batch_stream.h"
#include "data/fgram_trie.h"
#include "data/fgram_vocabulary_builder.h"

namespace scone {

double FgramCoverage::fgram_tokens_per_position() const {
  double sum = 0;
  for (std::size_t n = 2; n < matched.size(); ++n) {
    sum += static_cast<double>(n) * static_cast<double>(matched[n]);
  }
  return positions == 0 ? 0 : sum / static_cast<double>(positions);
}

double FgramCoverage::padded_tokens_per_position() const {
  if (positions == 0) return 0;
  return static_cast<double>(matched.size() - 1) * static_cast<double>(positions - matched[0]) /
         static_cast<double>(positions);
}

FgramCoverage measure_coverage(Communicator& communicator, const TokenCorpus& corpus,
                               const FgramMatcher& matcher, std::int64_t tokens_wanted) {
  const std::int64_t end = tokens_wanted == 0 ? corpus.tokens() : tokens_wanted;
  const DocumentSlice slice = documents_of_rank(corpus, communicator.rank(), communicator.size());
  FgramCoverage coverage;
  coverage.matched.assign(static_cast<std::size_t>(matcher.max_length()) + 1, 0);
  std::vector<std::int64_t>& matched = coverage.matched;
#pragma omp parallel
  {
    std::vector<std::int64_t> own(matched.size(), 0);
    std::vector<std::int32_t> tokens;
    std::vector<std::int64_t> ids;
    std::vector<std::uint8_t> lengths;
#pragma omp for schedule(dynamic, 16)
    for (std::int64_t d = slice.first; d < slice.last; ++d) {
      const TokenCorpus::Range range = corpus.document(d);
      if (range.begin >= std::min(range.end, end)) continue;
      tokens.resize(static_cast<std::size_t>(std::min(range.end, end) - range.begin));
      ids.resize(tokens.size());
      lengths.resize(tokens.size());
      corpus.read(range.begin, tokens);
      matcher.match(tokens, ids, lengths);
      for (const std::uint8_t length : lengths) ++own[length];
    }
#pragma omp critical
    for (std::size_t n = 0; n < own.size(); ++n) matched[n] += own[n];
  }
  communicator.all_reduce(std::span(matched), ReduceOp::sum);
  for (const std::int64_t count : matched) coverage.positions += count;
  return coverage;
}

FgramSharing measure_sharing(const TokenCorpus& corpus, const FgramVocabulary& vocabulary,
                             std::int64_t batch_tokens, std::int64_t sequence_length,
                             std::int64_t batches, std::uint64_t seed) {
  FgramSharing sharing;
  sharing.batch_tokens = batch_tokens;
  BatchStreamOptions options;
  options.sequence_length = sequence_length;
  options.batch_sequences = std::max<std::int64_t>(1, batch_tokens / sequence_length);
  options.seed = seed;
  options.prefetch = 1;
  const std::int64_t available = (corpus.tokens() - 1) / sequence_length / options.batch_sequences;
  sharing.batches = std::min(batches, available);
  if (sharing.batches == 0) return sharing;
  BatchStream stream(corpus, &vocabulary, options);
  double nodes = 0;
  double fgrams = 0;
  for (std::int64_t b = 0; b < sharing.batches; ++b) {
    const Batch batch = stream.next();
    nodes += static_cast<double>(build_fgram_trie(vocabulary, batch.fgrams).size());
    fgrams += static_cast<double>(batch.fgrams.size());
  }
  const double tokens = static_cast<double>(sharing.batches) *
                        static_cast<double>(options.batch_sequences * sequence_length);
  sharing.nodes_per_token = nodes / tokens;
  sharing.fgrams_per_token = fgrams / tokens;
  return sharing;
}

}  // namespace scone
