#include "checkpoint/table_matcher.h"

#include <stdexcept>
#include <vector>

namespace scone {

std::size_t TableMatcher::match_of_lengths(std::span<const std::int32_t> tokens,
                                           std::span<const std::uint8_t> lengths,
                                           std::span<std::int64_t> ids) const {
  if (lengths.size() != tokens.size() || ids.size() != tokens.size())
    throw std::invalid_argument("match_of_lengths: spans of unequal sizes");
  // The n-grams overlap in the text; each is laid out by itself.
  std::vector<std::int32_t> ngrams;
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    ids[i] = -1;
    if (lengths[i] == 0) continue;
    if (lengths[i] < 2 || lengths[i] > i + 1) return i;
    const auto ngram = tokens.subspan(i + 1 - lengths[i], lengths[i]);
    ngrams.insert(ngrams.end(), ngram.begin(), ngram.end());
    offsets.push_back(static_cast<std::int64_t>(ngrams.size()));
    places.push_back(i);
  }
  std::vector<std::int64_t> found(places.size());
  index_.find(ngrams, offsets, found);
  for (std::size_t n = 0; n < places.size(); ++n) {
    if (found[n] < 0) return places[n];
    ids[places[n]] = found[n];
  }
  return tokens.size();
}

}  // namespace scone
