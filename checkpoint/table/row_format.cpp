#include "checkpoint/table/row_format.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "parallel/error.h"

namespace scone {
namespace {

std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

float from_bf16(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

// The fp16 conversions compute every case and choose by masks, so that loops over rows are
// vectorised: a branch around floating-point arithmetic would not be.
std::uint32_t choose(bool condition, std::uint32_t yes, std::uint32_t no) {
  const std::uint32_t mask = 0U - std::uint32_t{condition};
  return (yes & mask) | (no & ~mask);
}

std::uint16_t to_fp16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  const std::uint32_t normal = (magnitude + 0xfffU + ((magnitude >> 13) & 1U) - 0x38000000U) >> 13;
  // A multiple of 2^-24, as are all numbers in 0.5..1: the sum is rounded to one, nearest even.
  const std::uint32_t subnormal =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
  std::uint32_t half = choose(magnitude < 0x38800000U, subnormal, normal);
  half = choose(magnitude >= 0x47800000U, 0x7c00U, half);  // 65536 and above
  half = choose(magnitude > 0x7f800000U, 0x7e00U, half);   // not a number
  return static_cast<std::uint16_t>(sign | half);
}

float from_fp16(std::uint16_t value) {
  const std::uint32_t sign = (value & 0x8000U) << 16;
  const std::uint32_t magnitude = value & 0x7fffU;
  const std::uint32_t widened = (magnitude << 13) + (112U << 23);
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(
      static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24F);
  std::uint32_t result = choose(magnitude < 0x400U, subnormal, widened);
  result += choose(magnitude >= 0x7c00U, 112U << 23, 0);
  return std::bit_cast<float>(sign | result);
}

template <class Convert>
void encode_16(std::span<const float> row, std::byte* out, Convert convert) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    const std::uint16_t value = convert(row[i]);
    std::memcpy(out + 2 * i, &value, 2);
  }
}

template <class Convert>
void decode_16(const std::byte* stored, std::span<float> row, Convert convert) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    std::uint16_t value = 0;
    std::memcpy(&value, stored + 2 * i, 2);
    row[i] = convert(value);
  }
}

void encode_8(std::span<const float> row, std::byte* out) {
  float largest = 0;
  for (const float value : row) largest = std::max(largest, std::fabs(value));
  const float scale = largest / 127.0F;
  for (std::size_t i = 0; i < row.size(); ++i) {
    const float number = scale > 0 ? std::clamp(row[i] / scale, -127.0F, 127.0F) : 0.0F;
    // Numbers of this size are whole: the sum is rounded to one, nearest even.
    const auto rounded = std::bit_cast<std::uint32_t>(number + 12582912.0F) - 0x4b400000U;
    out[i] = static_cast<std::byte>(rounded);
  }
  std::memcpy(out + row.size(), &scale, sizeof(scale));
}

void decode_8(const std::byte* stored, std::span<float> row) {
  float scale = 0;
  std::memcpy(&scale, stored + row.size(), sizeof(scale));
  for (std::size_t i = 0; i < row.size(); ++i)
    row[i] = scale * static_cast<float>(static_cast<std::int8_t>(stored[i]));
}

}  // namespace

RowType row_type_of(const std::string& name) {
  for (const RowType type : {RowType::fp32, RowType::bf16, RowType::fp16, RowType::int8}) {
    if (name == name_of(type)) return type;
  }
  throw InputError("table row type: expected fp32, bf16, fp16 or int8, found \"" + name + "\"");
}

const char* name_of(RowType type) {
  switch (type) {
    case RowType::fp32:
      return "fp32";
    case RowType::bf16:
      return "bf16";
    case RowType::fp16:
      return "fp16";
    case RowType::int8:
      return "int8";
  }
  return "unknown";
}

std::int64_t row_bytes(RowType type, std::int64_t width) {
  switch (type) {
    case RowType::fp32:
      return 4 * width;
    case RowType::bf16:
    case RowType::fp16:
      return 2 * width;
    case RowType::int8:
      return width + 4;
  }
  return 0;
}

std::int64_t record_bytes(RowType type, std::int64_t width) {
  return (row_bytes(type, width) + 63) / 64 * 64;
}

void encode_row(RowType type, std::span<const float> row, std::byte* out) {
  switch (type) {
    case RowType::fp32:
      std::memcpy(out, row.data(), row.size_bytes());
      return;
    case RowType::bf16:
      return encode_16(row, out, to_bf16);
    case RowType::fp16:
      return encode_16(row, out, to_fp16);
    case RowType::int8:
      return encode_8(row, out);
  }
}

void decode_row(RowType type, const std::byte* stored, std::span<float> row) {
  switch (type) {
    case RowType::fp32:
      std::memcpy(row.data(), stored, row.size_bytes());
      return;
    case RowType::bf16:
      return decode_16(stored, row, from_bf16);
    case RowType::fp16:
      return decode_16(stored, row, from_fp16);
    case RowType::int8:
      return decode_8(stored, row);
  }
}

}  // namespace scone
