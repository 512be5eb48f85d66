#include "trainer/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel/error.h"

namespace scone {

Sampler::Sampler(const SamplingOptions& options) : options_(options) {
  if (!(options.temperature >= 0) || options.top_k < 0 ||
      !(options.top_p > 0 && options.top_p <= 1))
    throw InputError(
        fmt::format("sampling: temperature {} (>= 0), top-k {} (>= 0), top-p {} (in (0, 1])",
                    options.temperature, options.top_k, options.top_p));
}

double Sampler::uniform() {  // splitmix64 of seed and count
  std::uint64_t x = options_.seed * 0x9e3779b97f4a7c15ULL + ++drawn_ * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1.0p-53;
}

std::int32_t Sampler::draw(std::span<const float> logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options_.temperature == 0) return static_cast<std::int32_t>(best - logits.begin());
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  auto larger = [&](std::int32_t a, std::int32_t b) {
    const float of_a = logits[static_cast<std::size_t>(a)],
                of_b = logits[static_cast<std::size_t>(b)];
    return of_a != of_b ? of_a > of_b : a < b;
  };
  std::size_t kept = logits.size();
  if (options_.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(options_.top_k));
  if (kept < logits.size() || options_.top_p < 1) {
    std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(kept),
                      order_.end(), larger);
  }
  weights_.resize(kept);
  double sum = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    weights_[i] =
        std::exp((logits[static_cast<std::size_t>(order_[i])] - *best) / options_.temperature);
    sum += weights_[i];
  }
  if (options_.top_p < 1) {
    double reached = 0;
    std::size_t needed = 0;
    while (needed < kept && reached < options_.top_p * sum) reached += weights_[needed++];
    kept = needed;
    sum = reached;
  }
  double left = uniform() * sum;
  for (std::size_t i = 0; i < kept; ++i) {
    left -= weights_[i];
    if (left < 0) return order_[i];
  }
  return order_[kept - 1];
}

std::vector<std::int32_t> generate(LoadedModel& model, std::span<const std::int32_t> prompt,
                                   std::int64_t max_tokens, std::int32_t end_of_document,
                                   Sampler& sampler,
                                   const std::function<void(std::int32_t)>& on_token) {
  const std::int64_t context = model.config.main.context;
  if (prompt.empty()) throw InputError("the prompt has no tokens; give --prompt some text");
  if (static_cast<std::int64_t>(prompt.size()) > context)
    throw InputError(fmt::format("the prompt has {} tokens, the model's context is {}; shorten it",
                                 prompt.size(), context));
  std::vector<std::int32_t> tokens(prompt.begin(), prompt.end());
  const Device device = model.main_parameters->flat_values().device();
  KeyValueCache cache(model.config.main, device, model.main_parameters->dtype());
  std::vector<float> logits(static_cast<std::size_t>(model.config.vocabulary_size));
  Tensor buffer;
  std::size_t done = 0;  // tokens in the cache
  std::vector<std::int64_t> match, distinct;
  std::vector<std::int32_t> row_of_position;
  while (true) {
    // The f-grams that end at a new token begin at most K - 1 tokens before it.
    const std::size_t added = tokens.size() - done;
    row_of_position.assign(added, -1);
    distinct.clear();
    if (model.matcher) {
      const auto before = std::min(done, static_cast<std::size_t>(model.matcher->max_length() - 1));
      const auto piece = std::span<const std::int32_t>(tokens).subspan(done - before);
      match.resize(piece.size());
      model.matcher->match(piece, match);
      const auto fresh = std::span(match).subspan(before);
      for (const std::int64_t id : fresh)
        if (id >= 0) distinct.push_back(id);
      std::sort(distinct.begin(), distinct.end());
      distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
      for (std::size_t i = 0; i < added; ++i)
        if (fresh[i] >= 0)
          row_of_position[i] = static_cast<std::int32_t>(
              std::lower_bound(distinct.begin(), distinct.end(), fresh[i]) - distinct.begin());
    }
    const Tensor rows = reserve_rows(buffer, static_cast<std::int64_t>(distinct.size()),
                                     model.config.main.width, device);
    if (!distinct.empty()) model.source->rows(distinct, rows);
    model.main_model->decode(std::span<const std::int32_t>(tokens).subspan(done), row_of_position,
                             rows, cache, logits);
    done = tokens.size();
    if (static_cast<std::int64_t>(tokens.size() - prompt.size()) >= max_tokens ||
        static_cast<std::int64_t>(tokens.size()) >= context)
      break;
    const std::int32_t next = sampler.draw(logits);
    if (next == end_of_document) break;
    tokens.push_back(next);
    on_token(next);
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()), tokens.end()};
}

}  // namespace scone
