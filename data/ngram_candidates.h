#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "data/ngram_filter.h"
#include "data/ngram_key.h"
#include "data/token_corpus.h"

namespace scone {

/// Finds the n-grams of one length that a scan counts: those inside documents whose prefix and
/// suffix the filter holds (no filter: all).
template <int Words>
class NgramCandidates {
 public:
  NgramCandidates(const TokenCorpus& corpus, int length, int bits, const NgramFilter* filter)
      : corpus_(corpus), length_(length), bits_(bits), filter_(filter) {}

  /// Calls emit(key) for those that start at tokens [first, last) of the corpus, in their order.
  template <class Emit>
  void visit(std::int64_t first, std::int64_t last, const Emit& emit) {
    TokenCorpus::Range document{first, first};
    for (std::int64_t begin = first; begin < last; begin += block) {
      const std::int64_t end = std::min(begin + block, last);
      tokens_.resize(
          static_cast<std::size_t>(std::min(end + length_ - 1, corpus_.tokens()) - begin));
      corpus_.read(begin, tokens_);
      for (std::int64_t at = begin; at < end; at = document.end) {
        if (at >= document.end) document = corpus_.document_of(at);
        const std::int64_t starts = std::min(end, document.end - length_ + 1) - at;
        if (starts > 0)
          visit_piece(tokens_.data() + (at - begin), static_cast<std::size_t>(starts), emit);
        if (document.end > end) break;
      }
    }
  }

 private:
  static constexpr std::int64_t block = 1024;

  template <class Emit>
  void visit_piece(const std::int32_t* tokens, std::size_t starts, const Emit& emit) {
    const auto behind = static_cast<std::size_t>(length_ - 1);
    // The (n-1)-grams at starts 0..starts, and whether they may have survived.
    NgramKey<Words> key;
    for (std::size_t i = 0; i + 1 < behind; ++i)
      key.append(static_cast<std::uint32_t>(tokens[i]), bits_);
    const int kept_bits = bits_ * (length_ - 1);
    for (std::size_t i = 0; i <= starts; ++i) {
      key.append(static_cast<std::uint32_t>(tokens[i + behind - 1]), bits_);
      key.keep(kept_bits);
      keys_[i] = key;
      if (filter_ == nullptr) continue;
      hashes_[i] = key.hash();
      filter_->prefetch(hashes_[i]);
    }
    bool prefix = filter_ == nullptr || filter_->holds(hashes_[0]);
    for (std::size_t i = 0; i < starts; ++i) {
      const bool suffix = filter_ == nullptr || filter_->holds(hashes_[i + 1]);
      if (prefix && suffix) {
        NgramKey<Words> candidate = keys_[i];
        candidate.append(static_cast<std::uint32_t>(tokens[i + behind]), bits_);
        emit(candidate);
      }
      prefix = suffix;
    }
  }

  const TokenCorpus& corpus_;
  const int length_, bits_;
  const NgramFilter* const filter_;
  std::vector<std::int32_t> tokens_;
  NgramKey<Words> keys_[block + 1];
  std::uint64_t hashes_[block + 1];
};

}  // namespace scone
