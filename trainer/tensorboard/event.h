#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace scone {

// TensorBoard's events: the protobuf messages Event, Summary with its Value, and SessionLog of
// tensorflow/core/util/event.proto and framework/summary.proto, as far as scalars need them. They
// are encoded here by hand, a few fields each: libsentencepiece exports the symbols of an older
// protobuf-lite, with which a libprotobuf beside it in one program breaks.

struct Scalar {
  std::string tag;
  float value = 0;
};

/// The first event of a file. wall_time: seconds since 1970.
std::string encode_file_version(double wall_time);

/// The run was started, to go on with `step`: TensorBoard forgets what earlier files say of this
/// step and later ones.
std::string encode_session_start(double wall_time, std::int64_t step);

std::string encode_scalars(double wall_time, std::int64_t step, std::span<const Scalar> scalars);

/// Of an encoded event; 0 where it has none. Throws std::runtime_error where it is no message of
/// protobuf.
std::int64_t step_of_event(std::string_view event);

}  // namespace scone
