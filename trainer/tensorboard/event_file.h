#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace scone {

/// A record of TFRecord files, which TensorBoard's are: the event's length and the event, each with
/// its masked CRC-32C.
std::string frame_event(std::string_view event);

/// Where a file of events could be cut.
struct EventFilePart {
  std::uintmax_t bytes = 0;     // of the records before the first of a later step, or broken one
  std::int64_t with_steps = 0;  // how many of them are of a step, and not the file's version
  std::optional<std::string> broken;  // what is wrong with the record that comes then
};

/// The records of `file` that come before the first of a step > last_step, before the first whose
/// checksums are not its own, and before one that does not end, which a killed run leaves. Throws
/// std::runtime_error where the file cannot be read.
EventFilePart part_up_to_step(const std::filesystem::path& file, std::int64_t last_step);

}  // namespace scone
