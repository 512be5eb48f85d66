#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace scone {

/// Type of the numbers of a stored f-gram row.
enum class RowType : std::uint8_t { fp32, bf16, fp16 };

/// "fp32", "bf16", "fp16". Throws InputError for any other text.
RowType row_type_of(const std::string& name);
const char* name_of(RowType type);
std::int64_t bytes_of(RowType type);

/// Bytes of one record of a table: the row, padded with zeros to a multiple of 64 bytes, so that
/// every row starts on a cache line.
std::int64_t record_bytes(RowType type, std::int64_t width);

/// fp32 to the stored type, rounded to nearest even; values beyond fp16's range become infinities.
/// out: row.size() * bytes_of(type) bytes.
void encode_row(RowType type, std::span<const float> row, std::byte* out);

/// The stored type to fp32, exact. stored: row.size() * bytes_of(type) bytes, of any alignment.
void decode_row(RowType type, const std::byte* stored, std::span<float> row);

}  // namespace scone
