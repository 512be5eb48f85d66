#include "checkpoint/table/row_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "parallel/error.h"

namespace scone {
namespace {

constexpr RowType kAll[] = {RowType::fp32, RowType::bf16, RowType::fp16, RowType::int8};

std::vector<std::byte> encode(RowType type, const std::vector<float>& row) {
  std::vector<std::byte> stored(
      static_cast<std::size_t>(row_bytes(type, static_cast<std::int64_t>(row.size()))));
  encode_row(type, row, stored.data());
  return stored;
}

std::vector<float> decode(RowType type, const std::vector<std::byte>& stored, std::size_t width) {
  std::vector<float> row(width);
  decode_row(type, stored.data(), row);
  return row;
}

/// By its definition, in double.
double value_of(std::uint16_t bits, int mantissa_bits, int bias) {
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int implicit = exponent == 0 ? 0 : 1 << mantissa_bits;
  const double magnitude =
      std::ldexp(implicit + mantissa, std::max(exponent, 1) - bias - mantissa_bits);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

/// Every 16-bit number there and back.
TEST(RowFormat, DecodesAll16BitNumbersExactly) {
  std::vector<std::byte> stored(2 * 65536);
  for (std::uint32_t bits = 0; bits < 65536; ++bits)
    std::memcpy(stored.data() + std::size_t{2} * bits, &bits, 2);
  for (const RowType type : {RowType::bf16, RowType::fp16}) {
    const int mantissa_bits = type == RowType::bf16 ? 7 : 10;
    const int bias = type == RowType::bf16 ? 127 : 15;
    const std::vector<float> row = decode(type, stored, 65536);
    const std::vector<std::byte> again = encode(type, row);
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      const bool largest = (bits & 0x7fff) >> mantissa_bits == 0x7fffU >> mantissa_bits;
      const bool has_mantissa = (bits & ((1U << mantissa_bits) - 1)) != 0;
      if (largest && has_mantissa) {
        ASSERT_TRUE(std::isnan(row[bits])) << bits;
        continue;
      }
      if (largest) {
        ASSERT_TRUE(std::isinf(row[bits])) << bits;
      } else {
        ASSERT_EQ(row[bits], value_of(static_cast<std::uint16_t>(bits), mantissa_bits, bias))
            << bits;
      }
      ASSERT_EQ(std::signbit(row[bits]), bits >= 0x8000) << bits;
      ASSERT_EQ(std::memcmp(&again[std::size_t{2} * bits], &bits, 2), 0) << name_of(type) << bits;
    }
  }
}

/// The nearest of the two neighbours, and of two as near that with an even last bit.
TEST(RowFormat, RoundsToNearestEven) {
  std::mt19937 random(1);
  std::vector<float> row;
  for (int i = 0; i < 200000; ++i) {
    const double magnitude = std::ldexp(1 + std::uniform_real_distribution<>()(random),
                                        static_cast<int>(random() % 44) - 28);
    row.push_back(static_cast<float>(i % 2 == 0 ? magnitude : -magnitude));
  }
  for (std::uint16_t bits = 0; bits < 0x7bff; ++bits) {  // halfway between neighbours of fp16
    const auto next = static_cast<std::uint16_t>(bits + 1);
    row.push_back(static_cast<float>((value_of(bits, 10, 15) + value_of(next, 10, 15)) / 2));
  }
  for (const RowType type : {RowType::bf16, RowType::fp16}) {
    const int mantissa_bits = type == RowType::bf16 ? 7 : 10;
    const int bias = type == RowType::bf16 ? 127 : 15;
    const std::vector<std::byte> stored = encode(type, row);
    for (std::size_t i = 0; i < row.size(); ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, &stored[2 * i], 2);
      if (std::fabs(row[i]) >= 65520 && type == RowType::fp16) {
        ASSERT_EQ(bits & 0x7fff, 0x7c00) << row[i];
        continue;
      }
      const auto error = [&](std::uint16_t of) {
        return std::fabs(value_of(of, mantissa_bits, bias) - static_cast<double>(row[i]));
      };
      for (const int step : {-1, 1}) {
        if ((bits & 0x7fff) + step < 0) continue;
        const auto other = static_cast<std::uint16_t>(bits + step);
        ASSERT_LE(error(bits), error(other)) << name_of(type) << " " << row[i];
        ASSERT_TRUE(error(bits) < error(other) || bits % 2 == 0) << name_of(type) << " " << row[i];
      }
    }
  }
}

TEST(RowFormat, BeyondRangeIsInfinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> row{65519.996F, 65520.0F, -1e30F,   infinity, NAN,
                               1e-30F,     -1e-45F,  65536.0F, 70000.0F};
  const std::vector<float> found = decode(RowType::fp16, encode(RowType::fp16, row), row.size());
  EXPECT_EQ(found[0], 65504.0F);
  EXPECT_EQ(found[1], infinity);
  EXPECT_EQ(found[2], -infinity);
  EXPECT_EQ(found[3], infinity);
  EXPECT_TRUE(std::isnan(found[4]));
  EXPECT_EQ(found[7], infinity);
  EXPECT_EQ(found[8], infinity);
  EXPECT_EQ(found[5], 0.0F);
  EXPECT_TRUE(found[6] == 0.0F && std::signbit(found[6]));
  EXPECT_TRUE(std::isnan(decode(RowType::bf16, encode(RowType::bf16, row), row.size())[4]));
}

TEST(RowFormat, Int8IsWithinHalfItsScale) {
  std::mt19937 random(2);
  for (const float size : {1e-44F, 1e-38F, 1e-6F, 1.0F, 1e30F}) {
    for (const std::size_t width : {1U, 7U, 64U, 129U}) {
      std::vector<float> row(width);
      for (float& value : row) value = size * std::uniform_real_distribution<float>(-1, 1)(random);
      float largest = 0;
      for (const float value : row) largest = std::max(largest, std::fabs(value));
      const std::vector<float> found = decode(RowType::int8, encode(RowType::int8, row), width);
      // Half of the scale, which is itself rounded: relatively, or to a subnormal of 2^-149.
      const double bound = largest / 127.0 * (0.5 + 1e-4) + 128 * 0x1p-149;
      for (std::size_t i = 0; i < width; ++i)
        ASSERT_LE(std::fabs(static_cast<double>(found[i]) - row[i]), bound) << size;
    }
  }
  const std::vector<float> zeros(5, 0.0F);
  EXPECT_EQ(decode(RowType::int8, encode(RowType::int8, zeros), 5), zeros);
  const std::vector<float> whole{127, -127, 1, -1, 0, 126};
  EXPECT_EQ(decode(RowType::int8, encode(RowType::int8, whole), 6), whole);
}

TEST(RowFormat, RecordsArePaddedToCacheLines) {
  EXPECT_EQ(row_bytes(RowType::fp32, 10), 40);
  EXPECT_EQ(row_bytes(RowType::bf16, 10), 20);
  EXPECT_EQ(row_bytes(RowType::int8, 10), 14);
  EXPECT_EQ(record_bytes(RowType::int8, 60), 64);
  EXPECT_EQ(record_bytes(RowType::int8, 61), 128);
  for (const RowType type : kAll) EXPECT_EQ(row_type_of(name_of(type)), type);
  EXPECT_THROW(row_type_of("fp8"), InputError);
}

}  // namespace
}  // namespace scone
