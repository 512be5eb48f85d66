#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace scone {

/// Type of the numbers of a stored f-gram row.
enum class RowType : std::uint8_t { fp32, bf16, fp16, int8 };

/// "fp32", "bf16", "fp16", "int8". Throws InputError for any other text.
RowType row_type_of(const std::string& name);
const char* name_of(RowType type);

/// Bytes of a row: its numbers, and with int8 behind them the row's scale, an fp32.
std::int64_t row_bytes(RowType type, std::int64_t width);
/// Bytes of one record of a table: the row, padded with zeros to a multiple of 64 bytes, so that
/// every row starts on a cache line.
std::int64_t record_bytes(RowType type, std::int64_t width);

/// fp32 to the stored type, rounded to nearest even; values beyond fp16's range become infinities.
/// int8: the largest magnitude is 127 times the row's scale. row: finite; out: row_bytes.
void encode_row(RowType type, std::span<const float> row, std::byte* out);

/// The stored type to fp32; exact but for int8, number times scale. stored: row_bytes, of any
/// alignment.
void decode_row(RowType type, const std::byte* stored, std::span<float> row);

}  // namespace scone
