#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "checkpoint/table/table_index.h"

namespace scone {

/// Random f-grams, closed under prefix, and texts that are made of them.
class FgramText {
 public:
  /// About as many 2-grams as longer ones; `rows` of 2..max_length tokens below `vocabulary`.
  /// Throws InputError where there are not that many.
  FgramText(std::int64_t vocabulary, std::int64_t rows, int max_length, std::uint64_t seed);

  TableKey key(std::int64_t id) const { return keys_[static_cast<std::size_t>(id)]; }
  /// A text in which an f-gram ends at about `share` of the positions.
  std::vector<std::int32_t> text(std::int64_t tokens, double share);

 private:
  /// The ids that go on from a 2-gram's first token, or from an f-gram.
  std::vector<std::int32_t>& children(std::int64_t prefix);

  std::int64_t vocabulary_;
  std::mt19937_64 random_;
  std::vector<TableKey> keys_;
  std::vector<std::vector<std::int32_t>> after_token_, after_fgram_;
};

}  // namespace scone
