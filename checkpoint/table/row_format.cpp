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

std::uint16_t to_fp16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U;  // not a number
  } else if (magnitude >= 0x47800000U) {
    half = 0x7c00U;  // 65536 and above
  } else if (magnitude < 0x38800000U) {
    // Subnormal: a multiple of 2^-24. The product is exact, lrint rounds to nearest even.
    half = static_cast<std::uint32_t>(std::lrint(std::bit_cast<float>(magnitude) * 16777216.0F));
  } else {
    half = (magnitude + 0xfffU + ((magnitude >> 13) & 1U) - 0x38000000U) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

float from_fp16(std::uint16_t value) {
  const std::uint32_t sign = (value & 0x8000U) << 16;
  const std::uint32_t exponent = (value >> 10) & 0x1fU;
  const std::uint32_t mantissa = value & 0x3ffU;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  const std::uint32_t widened = exponent == 31 ? 0xffU : exponent + 112U;
  return std::bit_cast<float>(sign | (widened << 23) | (mantissa << 13));
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
    const long number = scale > 0 ? std::lrint(row[i] / scale) : 0;
    out[i] = static_cast<std::byte>(static_cast<std::int8_t>(std::clamp(number, -127L, 127L)));
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
