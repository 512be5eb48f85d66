#pragma once

#include <array>
#include <bit>
#include <compare>
#include <cstdint>

namespace scone {

/// Spreads a number's bits (multiply and fold). Leaves 0 as it is.
inline std::uint64_t spread_bits(std::uint64_t key) {
  key ^= key >> 32U;
  key *= 0xD6E8FEB86659FD93U;
  key ^= key >> 32U;
  key *= 0xD6E8FEB86659FD93U;
  return key ^ (key >> 32U);
}

/// Bits that hold every token id of a vocabulary.
inline int bits_of_token(std::int64_t vocabulary_size) {
  return vocabulary_size <= 2
             ? 1
             : static_cast<int>(std::bit_width(static_cast<std::uint64_t>(vocabulary_size - 1)));
}

/// The tokens of an n-gram, `bits` each, as one number of Words x 64 bits: the last token lowest,
/// so that the order of keys of one length is the lexicographic order of their tokens.
template <int Words>
struct NgramKey {
  std::array<std::uint64_t, Words> words{};  // the most significant first

  auto operator<=>(const NgramKey&) const = default;

  /// Appends a token; bits < 64.
  void append(std::uint32_t token, int bits) {
    const auto shift = static_cast<unsigned>(bits);
    for (int w = 0; w + 1 < Words; ++w) {
      words[static_cast<std::size_t>(w)] = words[static_cast<std::size_t>(w)] << shift |
                                           words[static_cast<std::size_t>(w) + 1] >> (64 - shift);
    }
    words[Words - 1] = words[Words - 1] << shift | token;
  }
  /// Keeps the lowest `bits` of the number.
  void keep(int bits) {
    for (int w = 0; w < Words; ++w) {
      const int below = 64 * (Words - 1 - w);  // bits of the words behind this one
      if (bits <= below) {
        words[static_cast<std::size_t>(w)] = 0;
      } else if (bits < below + 64) {
        words[static_cast<std::size_t>(w)] &=
            (std::uint64_t{1} << static_cast<unsigned>(bits - below)) - 1;
      }
    }
  }
  std::uint32_t last_token(int bits) const {
    return static_cast<std::uint32_t>(words[Words - 1] &
                                      ((std::uint64_t{1} << static_cast<unsigned>(bits)) - 1));
  }
  /// Takes the last token off; bits < 64.
  void drop_last(int bits) {
    const auto shift = static_cast<unsigned>(bits);
    for (int w = Words - 1; w > 0; --w) {
      words[static_cast<std::size_t>(w)] = words[static_cast<std::size_t>(w)] >> shift |
                                           words[static_cast<std::size_t>(w) - 1] << (64 - shift);
    }
    words[0] >>= shift;
  }
  /// The same for a number of more words.
  std::uint64_t hash() const {
    std::uint64_t hash = 0;
    for (const std::uint64_t word : words) hash = spread_bits(hash ^ word);
    return hash;
  }
};

/// An n-gram and how often it occurs.
template <int Words>
struct NgramRecord {
  NgramKey<Words> key;
  std::uint64_t count = 0;
};

/// The bits that the longest key may have, and the Words of NgramKey for n-grams of `length`.
constexpr int longest_key_bits = 256;
inline int words_of_key(int length, int bits) {
  return length * bits <= 64 ? 1 : length * bits <= 128 ? 2 : 4;
}

/// Calls function.template operator()<Words>() with the Words of n-grams of `length`.
template <class Function>
decltype(auto) with_key_words(int length, int bits, Function&& function) {
  switch (words_of_key(length, bits)) {
    case 1:
      return function.template operator()<1>();
    case 2:
      return function.template operator()<2>();
    default:
      return function.template operator()<4>();
  }
}

}  // namespace scone
