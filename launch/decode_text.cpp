#include "launch/decode_text.h"

#include <fmt/format.h>

#include <limits>
#include <unordered_set>

#include "parallel/error.h"

namespace scone {

FgramText::FgramText(std::int64_t vocabulary, std::int64_t rows, int max_length, std::uint64_t seed)
    : vocabulary_(vocabulary),
      random_(seed),
      after_token_(static_cast<std::size_t>(vocabulary)),
      after_fgram_(static_cast<std::size_t>(rows)) {
  constexpr int most_refused = 10000;  // one after the other
  if (rows < 1 || rows > std::numeric_limits<std::int32_t>::max() || max_length < 2)
    throw InputError(
        fmt::format("{} f-grams of up to {} tokens: expected 1 to 2^31 - 1, of at least 2 tokens",
                    rows, max_length));
  const auto below = [&](std::int64_t limit) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(limit));
  };
  struct Hash {
    std::size_t operator()(const std::pair<std::int64_t, std::int32_t>& key) const {
      return static_cast<std::size_t>(key.first * vocabulary + key.second) * 0x9E3779B97F4A7C15U;
    }
    std::int64_t vocabulary;
  };
  std::unordered_set<std::pair<std::int64_t, std::int32_t>, Hash> seen(16, Hash{vocabulary});
  std::vector<int> length;
  int refused = 0;
  while (std::ssize(keys_) < rows) {
    const std::int64_t id = std::ssize(keys_);
    const bool is_longer = id > 0 && max_length > 2 && random_() % 2 == 0;
    TableKey key;
    key.prefix = is_longer ? below(id) : -1 - below(vocabulary);
    key.last_token = static_cast<std::int32_t>(below(vocabulary));
    const int own = is_longer ? length[static_cast<std::size_t>(key.prefix)] + 1 : 2;
    if (own > max_length || !seen.emplace(key.prefix, key.last_token).second) {
      if (++refused == most_refused)
        throw InputError(
            fmt::format("{} f-grams over {} tokens: there are not that many; take "
                        "fewer rows or a larger vocabulary",
                        rows, vocabulary));
      continue;
    }
    refused = 0;
    keys_.push_back(key);
    length.push_back(own);
    children(key.prefix).push_back(static_cast<std::int32_t>(id));
  }
}

std::vector<std::int32_t>& FgramText::children(std::int64_t prefix) {
  return prefix < 0 ? after_token_[static_cast<std::size_t>(-1 - prefix)]
                    : after_fgram_[static_cast<std::size_t>(prefix)];
}

std::vector<std::int32_t> FgramText::text(std::int64_t tokens, double share) {
  std::vector<std::int32_t> result;
  std::int64_t at = 0;  // the f-gram that ends at the last token; below 0: none, -1 - the token
  std::uniform_real_distribution<double> uniform;
  while (std::ssize(result) < tokens) {
    std::int32_t token =
        static_cast<std::int32_t>(random_() % static_cast<std::uint64_t>(vocabulary_));
    std::int64_t next = -1 - std::int64_t{token};
    if (!result.empty() && uniform(random_) < share) {
      const auto* ids = &children(at);
      if (ids->empty()) ids = &children(-1 - std::int64_t{result.back()});
      if (!ids->empty()) {
        next = (*ids)[random_() % ids->size()];
        token = key(next).last_token;
      }
    }
    result.push_back(token);
    at = next;
  }
  return result;
}

}  // namespace scone
