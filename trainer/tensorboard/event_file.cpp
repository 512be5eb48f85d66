#include "trainer/tensorboard/event_file.h"

#include <fmt/format.h>

#include <fstream>
#include <stdexcept>

#include "trainer/tensorboard/crc32c.h"
#include "trainer/tensorboard/event.h"

namespace scone {
namespace {

constexpr std::size_t length_bytes = 8, checksum_bytes = 4;
constexpr std::uint64_t most_bytes = std::uint64_t{1} << 26;  // a longer record is a broken one

template <typename Unsigned>
std::string little_endian(Unsigned value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof(value); ++i, value >>= 8)
    bytes += static_cast<char>(value & 0xFF);
  return bytes;
}

std::uint64_t number_of(std::string_view bytes) {
  std::uint64_t number = 0;
  for (std::size_t i = bytes.size(); i-- > 0;)
    number = (number << 8) | static_cast<unsigned char>(bytes[i]);
  return number;
}

/// A CRC of data that hold CRCs themselves would be weak, so that TFRecord rotates and shifts it.
std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8;
}

/// Whether `bytes` end with the masked CRC of what stands before it.
bool is_checked(std::string_view bytes) {
  const auto before = bytes.substr(0, bytes.size() - checksum_bytes);
  return masked_crc(before) == number_of(bytes.substr(before.size()));
}

}  // namespace

std::string frame_event(std::string_view event) {
  const std::string length = little_endian(std::uint64_t{event.size()});
  return length + little_endian(masked_crc(length)) + std::string(event) +
         little_endian(masked_crc(event));
}

EventFilePart part_up_to_step(const std::filesystem::path& file, std::int64_t last_step) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error(fmt::format("{}: cannot be read", file.string()));
  EventFilePart part;
  const auto broken = [&](const char* what) {
    part.broken = fmt::format("{}: byte {}: {}", file.string(), part.bytes, what);
    return part;
  };
  std::string head(length_bytes + checksum_bytes, '\0'), body;
  while (in.peek() != std::ifstream::traits_type::eof()) {
    if (!in.read(head.data(), static_cast<std::streamsize>(head.size())))
      return broken("the record does not end");
    const std::uint64_t length = number_of(std::string_view(head).substr(0, length_bytes));
    if (!is_checked(head) || length > most_bytes)
      return broken("the checksum of the record's length is not its own");
    body.resize(length + checksum_bytes);
    if (!in.read(body.data(), static_cast<std::streamsize>(body.size())))
      return broken("the record does not end");
    if (!is_checked(body)) return broken("the record's checksum is not its own");
    const std::int64_t step = step_of_event(std::string_view(body).substr(0, length));
    if (step > last_step) break;
    part.bytes += head.size() + body.size();
    part.with_steps += step > 0 ? 1 : 0;
  }
  return part;
}

}  // namespace scone
