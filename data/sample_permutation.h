#pragma once

#include <cstdint>

namespace scone {

/// A permutation of 0..size-1 that is a pure function of (seed, epoch): a Feistel network over the
/// next even number of bits, with cycle walking. Any element is found in O(1), nothing is stored.
class SamplePermutation {
 public:
  /// size >= 1; throws std::invalid_argument otherwise.
  SamplePermutation(std::uint64_t seed, std::int64_t epoch, std::int64_t size);

  /// index: 0..size-1. Throws std::out_of_range otherwise.
  std::int64_t operator()(std::int64_t index) const;

 private:
  static constexpr int rounds_ = 6;
  std::uint64_t keys_[rounds_];
  std::uint64_t half_mask_;
  int half_bits_;
  std::uint64_t size_;
};

}  // namespace scone
