#include "trainer/fgram_rows.h"

#include <algorithm>

namespace scone {

void FgramRows::look_up(std::span<const FgramPiece> pieces, const FgramMatcher* matcher,
                        EmbeddingSource* source, std::int64_t width, Device device) {
  ids_.clear();
  for (const FgramPiece& piece : pieces) {
    matched_.assign(piece.tokens.size(), -1);
    if (matcher != nullptr) {
      const std::size_t before =
          std::min(piece.begin, static_cast<std::size_t>(matcher->max_length() - 1));
      const std::size_t first = piece.begin - before;
      matcher->match(piece.tokens.subspan(first), std::span(matched_).subspan(first));
    }
    ids_.insert(ids_.end(), matched_.begin() + static_cast<std::ptrdiff_t>(piece.begin),
                matched_.end());
  }
  distinct_.clear();
  std::copy_if(ids_.begin(), ids_.end(), std::back_inserter(distinct_),
               [](std::int64_t id) { return id >= 0; });
  std::sort(distinct_.begin(), distinct_.end());
  distinct_.erase(std::unique(distinct_.begin(), distinct_.end()), distinct_.end());
  row_of_position_.resize(ids_.size());
  for (std::size_t i = 0; i < ids_.size(); ++i) {
    row_of_position_[i] = ids_[i] < 0
                              ? -1
                              : static_cast<std::int32_t>(
                                    std::lower_bound(distinct_.begin(), distinct_.end(), ids_[i]) -
                                    distinct_.begin());
  }
  rows_ = reserve_rows(buffer_, std::ssize(distinct_), width, device);
  if (!distinct_.empty()) source->rows(distinct_, rows_);
}

}  // namespace scone
