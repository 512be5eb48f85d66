#include "data/token_mixture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "data/file_fingerprint.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr double kMostWeight = 1e12;
/// Keeps the permutations of rounds apart from those of epochs.
constexpr std::uint64_t kRoundSeed = 0x524F554E44U;

/// Whole shares of `total` in proportion to the weights: rounded down, and what is left to those
/// that lost most (of equals, the first).
std::vector<std::int64_t> whole_shares(const std::vector<double>& weights, std::int64_t total) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<std::int64_t> shares(weights.size());
  std::vector<double> lost(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double exact = weights[i] / sum * static_cast<double>(total);
    shares[i] = static_cast<std::int64_t>(std::floor(exact));
    lost[i] = exact - static_cast<double>(shares[i]);
  }
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lost[a] > lost[b]; });
  const std::int64_t left = total - std::accumulate(shares.begin(), shares.end(), std::int64_t{0});
  for (std::int64_t i = 0; i < left; ++i) ++shares[order[static_cast<std::size_t>(i)]];
  return shares;
}

}  // namespace

TokenMixture::TokenMixture(const TokenCorpus& corpus)
    : parts_{{.corpus = &corpus, .weight = 1, .name = ""}}, shares_{round_samples} {}

TokenMixture::TokenMixture(const std::vector<Part>& parts) : parts_(parts) {
  if (parts.empty()) throw std::invalid_argument("TokenMixture: no corpus");
  std::vector<double> weights;
  for (const Part& part : parts) {
    if (!(part.weight > 0) || !std::isfinite(part.weight))
      throw InputError(
          fmt::format("{}: expected a weight above 0, found {}", part.name, part.weight));
    if (part.weight > kMostWeight)
      throw InputError(fmt::format("{}: expected a weight of at most {}, found {}", part.name,
                                   kMostWeight, part.weight));
    weights.push_back(part.weight);
    const TokenCorpus& first = *parts.front().corpus;
    if (part.corpus->tokenizer_fingerprint() != first.tokenizer_fingerprint() ||
        part.corpus->vocabulary_size() != first.vocabulary_size())
      throw InputError(fmt::format(
          "{}: tokenized with tokenizer {} ({} tokens), but {} with {} ({} tokens); a mixture "
          "needs one tokenizer",
          part.name, part.corpus->tokenizer_fingerprint(), part.corpus->vocabulary_size(),
          parts.front().name, first.tokenizer_fingerprint(), first.vocabulary_size()));
  }
  shares_ = whole_shares(weights, round_samples);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (shares_[i] == 0)
      throw InputError(
          fmt::format("{}: a weight of {} is less than about 1/{} of their sum, and would "
                      "never be drawn; raise it, or leave the corpus out",
                      parts[i].name, parts[i].weight, 2 * round_samples));
  }
}

std::int64_t TokenMixture::tokens() const {
  std::int64_t sum = 0;
  for (const Part& part : parts_) sum += part.corpus->tokens();
  return sum;
}

std::int64_t TokenMixture::documents() const {
  std::int64_t sum = 0;
  for (const Part& part : parts_) sum += part.corpus->documents();
  return sum;
}

std::string TokenMixture::fingerprint() const {
  if (parts_.size() == 1) return parts_.front().corpus->fingerprint();
  std::string all;
  for (std::size_t i = 0; i < parts_.size(); ++i)
    all += fmt::format("{} {};", parts_[i].corpus->fingerprint(), shares_[i]);
  return xxh3_hex(all);
}

SampleOrder::SampleOrder(const TokenMixture& mixture, std::int64_t sequence_length,
                         std::uint64_t seed, bool shuffle)
    : seed_(seed), shuffle_(shuffle) {
  for (std::int64_t c = 0; c < mixture.size(); ++c) {
    Corpus corpus;
    // A window has at least one position whose target is inside the corpus.
    corpus.samples = (mixture.corpus(c).tokens() - 1 + sequence_length - 1) / sequence_length;
    corpus.share = mixture.share(c);
    samples_ += corpus.samples;
    corpora_.push_back(corpus);
  }
}

std::int64_t SampleOrder::shuffled(std::int64_t corpus, std::int64_t epoch, std::int64_t place) {
  if (!shuffle_) return place;
  Corpus& from = corpora_[static_cast<std::size_t>(corpus)];
  if (from.epoch != epoch) {
    from.order = SamplePermutation(seed_ + static_cast<std::uint64_t>(corpus), epoch, from.samples);
    from.epoch = epoch;
  }
  return from.order(place);
}

void SampleOrder::deal_round(std::int64_t round) {
  std::vector<std::int32_t> corpus_of_slot;
  for (std::size_t c = 0; c < corpora_.size(); ++c)
    corpus_of_slot.insert(corpus_of_slot.end(), static_cast<std::size_t>(corpora_[c].share),
                          static_cast<std::int32_t>(c));
  const SamplePermutation order(seed_ ^ kRoundSeed, round, TokenMixture::round_samples);
  std::vector<std::int32_t> drawn(corpora_.size());
  draws_.clear();
  for (std::int64_t place = 0; place < TokenMixture::round_samples; ++place) {
    const std::int32_t corpus = corpus_of_slot[static_cast<std::size_t>(order(place))];
    draws_.push_back({corpus, drawn[static_cast<std::size_t>(corpus)]++});
  }
  round_ = round;
}

SampleOrder::Place SampleOrder::at(std::int64_t epoch, std::int64_t place) {
  if (corpora_.size() == 1) return {0, shuffled(0, epoch, place)};
  const std::int64_t global = epoch * samples_ + place;
  const std::int64_t round = global / TokenMixture::round_samples;
  if (round_ != round) deal_round(round);
  const Draw& draw = draws_[static_cast<std::size_t>(global % TokenMixture::round_samples)];
  const Corpus& corpus = corpora_[static_cast<std::size_t>(draw.corpus)];
  const std::int64_t before = round * corpus.share + draw.before;
  return {draw.corpus, shuffled(draw.corpus, before / corpus.samples, before % corpus.samples)};
}

}  // namespace scone
