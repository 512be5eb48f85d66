#include "parallel/bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace scone {
namespace {

TEST(Bf16, EveryValueComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Bf16 value{static_cast<std::uint16_t>(bits)};
    const float number = to_float(value);
    if (std::isnan(number)) {
      EXPECT_EQ(to_bf16(number).bits, bits | 0x40u);
    } else {
      EXPECT_EQ(to_bf16(number), value);
    }
  }
}

TEST(Bf16, RoundsToTheNearest) {
  // Between two neighbours of every exponent: below the middle, on it, above it.
  for (std::uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const std::uint32_t middle = (bits << 16) | 0x8000u;
    const auto rounded = [&](std::uint32_t of) { return to_bf16(std::bit_cast<float>(of)).bits; };
    EXPECT_EQ(rounded(middle - 1), bits);
    EXPECT_EQ(rounded(middle), bits + bits % 2);  // the even one
    EXPECT_EQ(rounded(middle + 1), bits + 1);     // beyond the largest: infinity
    EXPECT_EQ(rounded(middle | 0x80000000u), 0x8000u | (bits + bits % 2));
  }
}

TEST(Bf16, NanStaysNan) {
  const float quiet = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(to_float(to_bf16(quiet))));
  EXPECT_TRUE(std::signbit(to_float(to_bf16(-quiet))));
  // All of its payload in the bits that are cut off, and one that rounding up would make -0.
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7fffffffu)))));
}

}  // namespace
}  // namespace scone
