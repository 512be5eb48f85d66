#include "data/ngram_filter.h"

#include <algorithm>
#include <cstring>

namespace scone {

NgramFilter::NgramFilter(
    Communicator& communicator, std::int64_t keys, std::int64_t most_bytes,
    const std::function<void(const std::function<void(std::uint64_t)>&)>& each) {
  constexpr std::int64_t bits_per_key = 12;
  const std::int64_t share = most_bytes / 8 / communicator.size();
  const auto own = static_cast<std::uint64_t>(std::clamp<std::int64_t>(
      (keys * bits_per_key + 63) / 64, 1, std::max<std::int64_t>(share, 1)));
  PageBuffer<std::uint64_t> words(own);
  each([&](std::uint64_t hash) { words[in_segment(hash, own)] |= bits_of(hash); });
  if (communicator.size() == 1) {
    segments_ = {{0, own}};
    words_ = std::move(words);
    return;
  }
  const auto all = communicator.all_gather(std::as_bytes(words.span()));
  std::uint64_t total = 0;
  for (const auto& bytes : all) {
    segments_.push_back({total, bytes.size() / 8});
    total += bytes.size() / 8;
  }
  words_ = PageBuffer<std::uint64_t>(total);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    std::memcpy(words_.data() + segments_[rank].begin, all[rank].data(), all[rank].size());
}

}  // namespace scone
