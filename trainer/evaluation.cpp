#include "trainer/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>

#include "data/batch_stream.h"
#include "data/tokenizer.h"
#include "parallel/error.h"

namespace scone {

std::unique_ptr<Tokenizer> load_corpus_tokenizer(const TokenCorpus& corpus) {
  auto tokenizer = load_tokenizer(corpus.tokenizer_path());
  if (tokenizer->fingerprint() != corpus.tokenizer_fingerprint())
    throw InputError(fmt::format(
        "{}: is tokenizer {}, but the shards beside it were made with {}; put that one back",
        tokenizer->file().string(), tokenizer->fingerprint(), corpus.tokenizer_fingerprint()));
  if (tokenizer->vocabulary_size() != corpus.vocabulary_size())
    throw InputError(fmt::format(
        "{}: attribute vocabulary_size is {}, its tokenizer has {} tokens; the shard is damaged, "
        "tokenize again",
        corpus.shards().front().path.string(), corpus.vocabulary_size(),
        tokenizer->vocabulary_size()));
  return tokenizer;
}

std::vector<std::int32_t> token_byte_lengths(const Tokenizer& tokenizer) {
  std::vector<std::int32_t> lengths(static_cast<std::size_t>(tokenizer.vocabulary_size()));
  for (std::size_t id = 0; id < lengths.size(); ++id)
    lengths[id] =
        static_cast<std::int32_t>(tokenizer.token_bytes(static_cast<std::int32_t>(id)).size());
  return lengths;
}

EvaluationResult evaluate(const TokenCorpus& corpus, const FgramMatcher* matcher, MainModel& model,
                          EmbeddingSource* source, std::int64_t width,
                          std::span<const std::int32_t> token_bytes,
                          const EvaluationOptions& options, Communicator& world,
                          const ProcessGrid& grid) {
  const auto start = std::chrono::steady_clock::now();
  const std::int64_t ranks = grid.data_size(), length = options.sequence_length;
  std::int64_t samples = (corpus.tokens() - 1 + length - 1) / length;
  if (options.tokens > 0) samples = std::min(samples, (options.tokens - 1) / length + 1);
  const std::int64_t lookup_sequences =
      std::clamp<std::int64_t>((samples + ranks - 1) / ranks, 1, most_lookup_sequences);
  const std::int64_t batch_sequences = lookup_sequences * ranks;
  BatchStream stream(corpus, matcher,
                     {.sequence_length = length,
                      .batch_sequences = batch_sequences,
                      .data = {grid.data_rank(), grid.data_size()},
                      .share = {grid.tensor_rank(), grid.tensor_size()},
                      .seed = 0,
                      .shuffle = false,
                      .attention_across_documents = options.attention_across_documents,
                      .prefetch = 1});

  EvaluationResult result;
  double loss_sum = 0;
  Tensor row_buffer;
  std::vector<float> losses;
  for (std::int64_t first = 0; first < samples; first += batch_sequences) {
    const Batch batch = stream.next();
    const std::int64_t own_first = first + lookup_sequences * grid.data_rank();
    const std::int64_t sequences =
        std::clamp<std::int64_t>(samples - own_first, 0, batch.sequences);
    const Tensor rows = reserve_rows(row_buffer, static_cast<std::int64_t>(batch.fgrams.size()),
                                     width, model.device());
    if (source != nullptr) source->rows(batch.fgrams, rows);  // also where this rank needs none
    for (std::int64_t begin = 0; begin < sequences; begin += options.microbatch_sequences) {
      const std::int64_t count = std::min(options.microbatch_sequences, sequences - begin);
      const auto offset = static_cast<std::size_t>(begin * length);
      const auto positions = static_cast<std::size_t>(count * length);
      auto part = [&](const std::vector<std::int32_t>& all) {
        return std::span(all).subspan(offset, positions);
      };
      const MicroBatch microbatch{.sequences = count,
                                  .length = length,
                                  .tokens = part(batch.tokens),
                                  .targets = part(batch.targets),
                                  .attention_start = part(batch.attention_start),
                                  .row_of_position = part(batch.row_of_position)};
      losses.resize(positions);
      loss_sum += model.forward(microbatch, rows, losses);
      for (std::size_t i = 0; i < positions; ++i) {
        if (microbatch.targets[i] < 0) continue;
        ++result.tokens;
        result.matched += microbatch.row_of_position[i] != -1;
        result.bytes += token_bytes[static_cast<std::size_t>(microbatch.targets[i])];
      }
    }
  }
  if (grid.tensor_rank() != 0) {  // the others of the group have counted the same
    loss_sum = 0;
    result = {};
  }
  std::int64_t counts[] = {result.tokens, result.matched, result.bytes};
  world.all_reduce(std::span<std::int64_t>(counts), ReduceOp::sum);
  loss_sum = world.all_reduce_value(loss_sum, ReduceOp::sum);
  result.tokens = counts[0];
  result.matched = counts[1];
  result.bytes = counts[2];
  if (result.tokens == 0)
    throw InputError(fmt::format("{}: no document has two tokens, so there is nothing to predict",
                                 corpus.shards().front().path.string()));
  result.loss = loss_sum / static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.loss);
  if (result.bytes > 0)
    result.bits_per_byte = loss_sum / std::numbers::ln2 / static_cast<double>(result.bytes);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace scone
