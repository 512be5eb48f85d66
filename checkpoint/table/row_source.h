#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "checkpoint/table/table_layout.h"

namespace scone {

/// Where rows are read from: RAM that the files were read into whole (huge pages), a mapping of
/// them, or the files themselves past the page cache (O_DIRECT, io_uring).
enum class TableAccess : std::uint8_t { ram, mmap, direct };
/// "ram", "mmap", "direct". Throws InputError for any other text.
TableAccess table_access_of(const std::string& name);
const char* name_of(TableAccess access);

struct RowSourceOptions {
  TableAccess access = TableAccess::mmap;
  int queue_depth = 64;  // direct: reads in flight
  std::int64_t cache_bytes = std::int64_t{64}
                             << 20;  // direct: RAM for the first rows, the most frequent f-grams
};

/// The records of a table. Safe to use from several threads at once.
class RowSource {
 public:
  virtual ~RowSource() = default;
  /// records[i] = the address of record ids[i], valid until the next call on this `buffer`. Sources
  /// that hold the rows in memory point into it; others read into `buffer`, each distinct id once.
  /// ids: in range. Throws std::runtime_error where reading fails, naming the file.
  class Buffer;
  virtual std::unique_ptr<Buffer> make_buffer() const = 0;
  virtual void read(std::span<const std::int64_t> ids, Buffer& buffer,
                    std::span<const std::byte*> records) const = 0;
  virtual TableAccess access() const = 0;
};

}  // namespace scone
