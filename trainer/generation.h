#pragma once

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

/// Draws token ids from logits; the same sequence for the same seed.
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

/// Appends up to max_tokens tokens to `prompt` with a KV cache, calling on_token with each as it is
/// drawn. Stops before end_of_document (-1: never) and at the context's end. The f-gram of each
/// position is the longest match in the tokens so far. Returns the new tokens. Throws InputError
/// for a prompt that is empty or longer than the context.
std::vector<std::int32_t> generate(LoadedModel& model, std::span<const std::int32_t> prompt,
                                   std::int64_t max_tokens, std::int32_t end_of_document,
                                   Sampler& sampler,
                                   const std::function<void(std::int32_t)>& on_token);

}  // namespace scone
