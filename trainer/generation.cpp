#include "trainer/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel/error.h"
#include "trainer/fgram_rows.h"
#include "trainer/stopwatch.h"

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
  // Of a NaN neither comparisons nor sums would tell. Minus infinity is a token never drawn.
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float logit) {
    return std::isnan(logit) || logit == std::numeric_limits<float>::infinity();
  });
  const auto best = std::max_element(logits.begin(), logits.end());
  if (bad != logits.end() || logits.empty() || std::isinf(*best)) {
    const auto at = bad != logits.end() ? bad : best;
    throw std::runtime_error(
        logits.empty() ? "no token can be drawn: there are no logits"
                       : fmt::format("no token can be drawn: the logit of token {} is {}, and no "
                                     "probabilities follow from the model's output; check the "
                                     "model's weights and table (scone bundle verify), and whether "
                                     "its training diverged",
                                     at - logits.begin(), *at));
  }
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

namespace {

/// A sequence that is being generated.
struct Active {
  std::size_t index;                 // of its prompt
  std::size_t prompt;                // tokens of it
  std::vector<std::int32_t> tokens;  // prompt and new ones
  KeyValueCache cache;
  Sampler sampler;
  std::vector<float> logits;  // of the next token
};

/// Tokens of one sequence that are computed in one chunk.
struct Part {
  Active* sequence;
  std::size_t begin, end;
};

class Generator {
 public:
  Generator(LoadedModel& model, const GenerationOptions& options)
      : model_(model),
        options_(options),
        device_(model.main_model->device()),
        // The live f-gram model computes on the backend, as the main model does: in turn.
        looks_up_ahead_(model.fgram_model == nullptr) {}

  Generation run(std::span<const std::vector<std::int32_t>> prompts,
                 const std::function<void(std::size_t, std::int32_t)>& on_token) {
    result_.tokens.resize(prompts.size());
    std::size_t begun = 0;
    while (begun < prompts.size() || !active_.empty()) {
      std::vector<Active*> fresh;
      for (; begun < prompts.size() && std::ssize(active_) < options_.batch; ++begun)
        fresh.push_back(&begin(begun, prompts[begun]));
      prefill(fresh);
      draw(on_token);
      step();
    }
    return std::move(result_);
  }

 private:
  bool is_full(const Active& sequence) const {
    return std::ssize(sequence.tokens) - static_cast<std::int64_t>(sequence.prompt) >=
               options_.max_tokens ||
           std::ssize(sequence.tokens) >= model_.config.main.context;
  }

  Active& begin(std::size_t index, const std::vector<std::int32_t>& prompt) {
    SamplingOptions sampling = options_.sampling;
    sampling.seed += index;
    // The last token drawn is not computed.
    const std::int64_t context = model_.config.main.context, length = std::ssize(prompt);
    const std::int64_t most = length + std::min(options_.max_tokens, context - length);
    active_.push_back(std::make_unique<Active>(Active{
        .index = index,
        .prompt = prompt.size(),
        .tokens = prompt,
        .cache = KeyValueCache(model_.config.main, device_, model_.main_parameters->dtype(), most),
        .sampler = Sampler(sampling),
        .logits = std::vector<float>(static_cast<std::size_t>(model_.config.vocabulary_size))}));
    result_.times.prompt_tokens += length;
    return *active_.back();
  }

  void look_up(std::span<const Part> parts, FgramRows& rows) const {
    std::vector<FgramPiece> pieces;
    for (const Part& part : parts)
      pieces.push_back({std::span(part.sequence->tokens).first(part.end), part.begin});
    rows.look_up(pieces, model_.matcher.get(), model_.source.get(), model_.config.main.width,
                 device_);
  }

  void compute(std::span<const Part> parts, const FgramRows& rows) {
    std::vector<DecodeSequence> sequences;
    std::size_t at = 0;
    for (const Part& part : parts) {
      Active& sequence = *part.sequence;
      const std::size_t count = part.end - part.begin;
      const bool wanted = part.end == sequence.tokens.size() && !is_full(sequence);
      sequences.push_back({&sequence.cache, std::span(sequence.tokens).subspan(part.begin, count),
                           rows.row_of_position().subspan(at, count),
                           wanted ? std::span<float>(sequence.logits) : std::span<float>()});
      at += count;
    }
    model_.main_model->decode(sequences, rows.rows());
  }

  /// The prompts one after the other, cut into chunks that may hold parts of several.
  std::vector<std::vector<Part>> chunks_of(std::span<Active* const> fresh) const {
    std::vector<std::vector<Part>> chunks;
    const auto most = static_cast<std::size_t>(options_.prefill_chunk);
    std::size_t room = 0;
    for (Active* sequence : fresh) {
      for (std::size_t begin = 0; begin < sequence->prompt;) {
        if (room == 0) {
          chunks.emplace_back();
          room = most;
        }
        const std::size_t end = std::min(sequence->prompt, begin + room);
        chunks.back().push_back({sequence, begin, end});
        room -= end - begin;
        begin = end;
      }
    }
    return chunks;
  }

  void prefill(std::span<Active* const> fresh) {
    const Stopwatch stopwatch(result_.times.prefill_seconds);
    const auto chunks = chunks_of(fresh);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      if (i == 0 || !looks_up_ahead_) look_up(chunks[i], rows_);
      std::future<void> next;
      if (looks_up_ahead_ && i + 1 < chunks.size())
        next = std::async(std::launch::async, [&, i] { look_up(chunks[i + 1], next_rows_); });
      compute(chunks[i], rows_);
      if (!next.valid()) continue;
      next.get();
      std::swap(rows_, next_rows_);
    }
  }

  /// Draws a token for each sequence; those that end leave the batch.
  void draw(const std::function<void(std::size_t, std::int32_t)>& on_token) {
    const Stopwatch stopwatch(result_.times.decode_seconds);
    std::erase_if(active_, [&](const std::unique_ptr<Active>& sequence) {
      bool ends = is_full(*sequence);
      if (!ends) {
        const std::int32_t next = sequence->sampler.draw(sequence->logits);
        ends = next == options_.end_of_document;
        if (!ends) {
          sequence->tokens.push_back(next);
          result_.tokens[sequence->index].push_back(next);
          ++result_.times.new_tokens;
          if (on_token) on_token(sequence->index, next);
          ends = is_full(*sequence);
        }
      }
      return ends;
    });
  }

  /// The tokens just drawn through the model.
  void step() {
    if (active_.empty()) return;
    const Stopwatch stopwatch(result_.times.decode_seconds);
    std::vector<Part> parts;
    for (const auto& sequence : active_)
      parts.push_back({sequence.get(), sequence->tokens.size() - 1, sequence->tokens.size()});
    look_up(parts, rows_);
    compute(parts, rows_);
    ++result_.times.steps;
  }

  LoadedModel& model_;
  const GenerationOptions& options_;
  Device device_;
  bool looks_up_ahead_;
  std::vector<std::unique_ptr<Active>> active_;  // whose addresses the parts of a chunk keep
  FgramRows rows_, next_rows_;
  Generation result_;
};

void check_options(const GenerationOptions& options) {
  if (options.max_tokens < 0 || options.batch < 1 || options.prefill_chunk < 1)
    throw InputError(
        fmt::format("generation: max tokens {} (>= 0), batch {} (>= 1), prefill chunk {} (>= 1)",
                    options.max_tokens, options.batch, options.prefill_chunk));
  const Sampler checked(options.sampling);
}

}  // namespace

Generation generate(LoadedModel& model, std::span<const std::vector<std::int32_t>> prompts,
                    const GenerationOptions& options,
                    const std::function<void(std::size_t, std::int32_t)>& on_token) {
  check_options(options);
  const std::int64_t context = model.config.main.context;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::string which = prompts.size() > 1 ? fmt::format("prompt {}", i + 1) : "the prompt";
    if (prompts[i].empty()) throw InputError(which + " has no tokens; give it some text");
    if (std::ssize(prompts[i]) > context)
      throw InputError(fmt::format("{} has {} tokens, the model's context is {}; shorten it", which,
                                   prompts[i].size(), context));
  }
  return Generator(model, options).run(prompts, on_token);
}

}  // namespace scone
