#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace scone {

/// The ids of words encoded before, at most half a million short ones. Safe to use from several
/// threads: words are spread over shards, each with its lock; a full shard starts afresh.
class WordCache {
 public:
  /// Appends the word's ids: the remembered ones, or what encode(word, ids) appends.
  template <typename Encode>
  void append(std::string_view word, std::vector<std::int32_t>& ids, const Encode& encode) {
    if (word.size() > kLongestWord) {
      encode(word, ids);
      return;
    }
    const std::size_t hash = std::hash<std::string_view>()(word);
    Shard& shard = shards_[hash / 64 % kShards];
    {
      const std::lock_guard lock(shard.mutex);
      const auto found = shard.words.find(word);
      if (found != shard.words.end()) {
        ids.insert(ids.end(), found->second.begin(), found->second.end());
        return;
      }
    }
    const std::size_t before = ids.size();
    encode(word, ids);
    const std::lock_guard lock(shard.mutex);
    if (shard.words.size() >= kWordsPerShard) shard.words.clear();
    const std::span<const std::int32_t> added = std::span(ids).subspan(before);
    shard.words.try_emplace(std::string(word), added.begin(), added.end());
  }

 private:
  static constexpr std::size_t kLongestWord = 64;  // bytes
  static constexpr std::size_t kShards = 64;
  static constexpr std::size_t kWordsPerShard = 8192;
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };
  struct alignas(64) Shard {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<std::int32_t>, Hash, std::equal_to<>> words;
  };
  std::array<Shard, kShards> shards_;
};

}  // namespace scone
