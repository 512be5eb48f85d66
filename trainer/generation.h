#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "trainer/loaded_model.h"

namespace scone {

struct SamplingOptions {
  double temperature = 1;  // 0: the most probable token
  std::int64_t top_k = 0;  // 0: all tokens
  double top_p = 1;        // smallest set of most probable tokens whose probability reaches this
  std::uint64_t seed = 1;
};

/// Draws token ids from logits; the same sequence for the same seed. draw() throws
/// std::runtime_error for logits that are no numbers, as those of damaged weights are.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);  // throws InputError for values out of range
  std::int32_t draw(std::span<const float> logits);

 private:
  double uniform();  // in [0, 1)
  SamplingOptions options_;
  std::uint64_t drawn_ = 0;
  std::vector<std::int32_t> order_;
  std::vector<double> weights_;
};

struct GenerationOptions {
  std::int64_t max_tokens = 100;      // new tokens of each sequence, at most
  std::int32_t end_of_document = -1;  // a sequence ends before it; -1: never
  SamplingOptions sampling = {};      // sequence i draws with seed + i
  std::int64_t batch = 16;            // most sequences decoded together; others wait
  std::int64_t prefill_chunk = 256;   // tokens of prompts computed at a time
};

/// Where the time of a generation went.
struct GenerationTimes {
  double prefill_seconds = 0;  // of the prompts
  double decode_seconds = 0;   // of the steps that take a token of each sequence of the batch
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
  std::int64_t steps = 0;  // of decoding
  double seconds() const { return prefill_seconds + decode_seconds; }
  /// Of a step, whatever its batch; 0 where there was none.
  double milliseconds_per_step() const {
    return steps > 0 ? 1e3 * decode_seconds / static_cast<double>(steps) : 0;
  }
};

struct Generation {
  std::vector<std::vector<std::int32_t>> tokens;  // new ones of each sequence
  GenerationTimes times;
};

/// Goes on from each prompt with a KV cache, a batch of sequences at a time, calling
/// on_token(sequence, token) with each token as it is drawn. A sequence ends before
/// end_of_document, after max_tokens, and at the context's end; it then leaves the batch, and the
/// next prompt takes its place. The f-gram of each position is the longest match in the sequence so
/// far. Prompts are computed in chunks; a table's rows for the next one are looked up on another
/// thread meanwhile. Each sequence has the tokens that it has when generated alone with its seed,
/// as far as rounding does not decide between two of them. Throws InputError, before any work, for
/// a prompt that is empty or longer than the context, and for options out of range.
Generation generate(
    LoadedModel& model, std::span<const std::vector<std::int32_t>> prompts,
    const GenerationOptions& options,
    const std::function<void(std::size_t sequence, std::int32_t token)>& on_token = {});

}  // namespace scone
