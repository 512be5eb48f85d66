#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "checkpoint/table/table_layout.h"

namespace scone {

/// Where rows are read from: RAM that the files were read into whole (huge pages), a mapping of
/// them, or the files themselves past the page cache (O_DIRECT, io_uring). Files are replaced
/// whole, never changed in place: the kernel ends a process that reads a mapped file behind its new
/// end.
enum class TableAccess : std::uint8_t { ram, mmap, direct };
/// "ram", "mmap", "direct". Throws InputError for any other text.
TableAccess table_access_of(const std::string& name);
const char* name_of(TableAccess access);

struct RowSourceOptions {
  TableAccess access = TableAccess::mmap;
  int queue_depth = 64;  // direct: reads in flight for each call under way, 1..4096
  /// direct: RAM for the first rows, the most frequent f-grams.
  std::int64_t cache_bytes = std::int64_t{64} << 20;
};

/// The records of a table. Immutable, safe to use from several threads at once.
class RowSource {
 public:
  /// Called with i and the address of record ids[i], which is valid during the call. It must not
  /// read rows itself.
  using Take = std::function<void(std::size_t i, const std::byte* record)>;

  virtual ~RowSource() = default;
  /// Calls `take` once for each i, in any order, on this thread. Sources that hold the rows in
  /// memory give their address; `direct` reads each distinct id once, and takes rows while others
  /// are read. Throws std::out_of_range for other ids, before any is taken; std::runtime_error
  /// where reading fails, naming file and byte.
  virtual void read(std::span<const std::int64_t> ids, const Take& take) const = 0;
  virtual TableAccess access() const = 0;
};

/// Opens the rows of a bundle, whose files check_table_file has passed. Where `direct` is refused
/// (by the file system, the kernel, or a build without liburing) they are mapped, and `fallback`
/// says why; else it is empty. Throws InputError for a missing file or options out of range,
/// std::runtime_error: not enough memory.
std::unique_ptr<RowSource> open_rows(const std::filesystem::path& bundle, const TableLayout& layout,
                                     const RowSourceOptions& options, std::string& fallback);

}  // namespace scone
