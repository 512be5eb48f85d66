#include "data/sample_permutation.h"

#include <bit>
#include <stdexcept>

namespace scone {
namespace {

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
std::uint64_t mix(std::uint64_t value) {
  value += 0x9E3779B97F4A7C15U;
  value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9U;
  value = (value ^ (value >> 27U)) * 0x94D049BB133111EBU;
  return value ^ (value >> 31U);
}

}  // namespace

SamplePermutation::SamplePermutation(std::uint64_t seed, std::int64_t epoch, std::int64_t size)
    : size_(static_cast<std::uint64_t>(size)) {
  if (size < 1) throw std::invalid_argument("SamplePermutation: size must be at least 1");
  const std::uint64_t key = mix(mix(seed) ^ static_cast<std::uint64_t>(epoch));
  for (int round = 0; round < rounds_; ++round) {
    keys_[round] = mix(key + static_cast<std::uint64_t>(round));
  }
  const int bits = size_ > 1 ? static_cast<int>(std::bit_width(size_ - 1)) : 1;
  half_bits_ = (bits + 1) / 2;
  half_mask_ = (std::uint64_t{1} << static_cast<unsigned>(half_bits_)) - 1;
}

std::int64_t SamplePermutation::operator()(std::int64_t index) const {
  std::uint64_t value = static_cast<std::uint64_t>(index);
  if (index < 0 || value >= size_) throw std::out_of_range("SamplePermutation: index beyond size");
  // The network permutes a power of four < 4 * size, so that walking out of range ends after < 4
  // steps on average.
  do {
    std::uint64_t left = value >> static_cast<unsigned>(half_bits_);
    std::uint64_t right = value & half_mask_;
    for (const std::uint64_t key : keys_) {
      const std::uint64_t next = left ^ (mix(right ^ key) & half_mask_);
      left = right;
      right = next;
    }
    value = (left << static_cast<unsigned>(half_bits_)) | right;
  } while (value >= size_);
  return static_cast<std::int64_t>(value);
}

}  // namespace scone
