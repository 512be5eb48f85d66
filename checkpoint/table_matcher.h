#pragma once

#include <string>

#include "checkpoint/table/table_index.h"
#include "data/fgram_matcher.h"

namespace scone {

/// The f-grams of a bundle's table as those of a vocabulary.
class TableMatcher final : public FgramMatcher {
 public:
  /// index must outlive this.
  TableMatcher(const TableIndex& index, std::string tokenizer_fingerprint)
      : index_(index), tokenizer_fingerprint_(std::move(tokenizer_fingerprint)) {}

  std::int64_t size() const override { return index_.header().rows; }
  int max_length() const override { return index_.header().max_length; }
  const std::string& tokenizer_fingerprint() const override { return tokenizer_fingerprint_; }
  std::string fingerprint() const override { return index_.header().fgrams; }
  void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids) const override {
    index_.match(tokens, ids);
  }
  void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids,
             std::span<std::uint8_t> lengths) const override {
    index_.match(tokens, ids, lengths);
  }
  std::size_t match_of_lengths(std::span<const std::int32_t> tokens,
                               std::span<const std::uint8_t> lengths,
                               std::span<std::int64_t> ids) const override;

 private:
  const TableIndex& index_;
  std::string tokenizer_fingerprint_;
};

}  // namespace scone
