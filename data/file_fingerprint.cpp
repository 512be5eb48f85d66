#include "data/file_fingerprint.h"

#include <fmt/format.h>
#include <xxhash.h>

namespace scone {

std::string xxh3_hex(std::string_view bytes) {
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

}  // namespace scone
