#include "trainer/tensorboard/event.h"

#include <bit>
#include <stdexcept>

namespace scone {
namespace {

enum class WireType : std::uint32_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

/// Of fields as the .proto files number them.
class MessageEncoder {
 public:
  void varint(std::uint32_t field, std::uint64_t value) {
    key(field, WireType::varint);
    append_varint(value);
  }
  void float32(std::uint32_t field, float value) {
    key(field, WireType::fixed32);
    append_little_endian(std::bit_cast<std::uint32_t>(value));
  }
  void float64(std::uint32_t field, double value) {
    key(field, WireType::fixed64);
    append_little_endian(std::bit_cast<std::uint64_t>(value));
  }
  /// A string, or a message.
  void bytes(std::uint32_t field, std::string_view value) {
    key(field, WireType::bytes);
    append_varint(value.size());
    text_ += value;
  }
  std::string take() { return std::move(text_); }

 private:
  void key(std::uint32_t field, WireType type) {
    append_varint((field << 3) | static_cast<std::uint32_t>(type));
  }
  void append_varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += static_cast<char>((value & 0x7F) | 0x80);
    text_ += static_cast<char>(value);
  }
  template <typename Unsigned>
  void append_little_endian(Unsigned value) {
    for (std::size_t i = 0; i < sizeof(value); ++i, value >>= 8)
      text_ += static_cast<char>(value & 0xFF);
  }

  std::string text_;
};

namespace event_field {
constexpr std::uint32_t wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7;
}
namespace summary_field {
constexpr std::uint32_t value = 1;
}
namespace value_field {
constexpr std::uint32_t tag = 1, simple_value = 2;
}
namespace session_log_field {
constexpr std::uint32_t status = 1;
}
constexpr std::uint64_t session_start = 1;

std::uint64_t take_varint(std::string_view& bytes) {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (bytes.empty()) break;
    const auto byte = static_cast<unsigned char>(bytes.front());
    bytes.remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  throw std::runtime_error("a number of an event does not end");
}

}  // namespace

std::string encode_file_version(double wall_time) {
  MessageEncoder event;
  event.float64(event_field::wall_time, wall_time);
  event.bytes(event_field::file_version, "brain.Event:2");
  return event.take();
}

std::string encode_session_start(double wall_time, std::int64_t step) {
  MessageEncoder log, event;
  log.varint(session_log_field::status, session_start);
  event.float64(event_field::wall_time, wall_time);
  event.varint(event_field::step, static_cast<std::uint64_t>(step));
  event.bytes(event_field::session_log, log.take());
  return event.take();
}

std::string encode_scalars(double wall_time, std::int64_t step, std::span<const Scalar> scalars) {
  MessageEncoder summary, event;
  for (const Scalar& scalar : scalars) {
    MessageEncoder value;
    value.bytes(value_field::tag, scalar.tag);
    value.float32(value_field::simple_value, scalar.value);
    summary.bytes(summary_field::value, value.take());
  }
  event.float64(event_field::wall_time, wall_time);
  event.varint(event_field::step, static_cast<std::uint64_t>(step));
  event.bytes(event_field::summary, summary.take());
  return event.take();
}

std::int64_t step_of_event(std::string_view event) {
  std::int64_t step = 0;
  while (!event.empty()) {
    const std::uint64_t key = take_varint(event);
    std::uint64_t skipped = 0;
    switch (static_cast<WireType>(key & 7)) {
      case WireType::varint: {
        const std::uint64_t value = take_varint(event);
        if (key >> 3 == event_field::step) step = static_cast<std::int64_t>(value);
        break;
      }
      case WireType::fixed64:
        skipped = 8;
        break;
      case WireType::bytes:
        skipped = take_varint(event);
        break;
      case WireType::fixed32:
        skipped = 4;
        break;
      default:
        throw std::runtime_error("an event has a field of unknown type");
    }
    if (skipped > event.size()) throw std::runtime_error("a field of an event does not end");
    event.remove_prefix(skipped);
  }
  return step;
}

}  // namespace scone
