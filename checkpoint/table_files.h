#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "checkpoint/table/table_layout.h"

namespace scone {

/// The row files of a table that is being made. Several processes may write different rows of it
/// at once. Safe to use from several threads.
class TableFiles {
 public:
  /// Makes the files of a table in a folder, at their full sizes, sparse, with their first pages.
  /// Throws std::runtime_error.
  static void create(const std::filesystem::path& folder, const TableLayout& layout);

  /// Opens them for writing. Throws InputError where a file is not the layout's.
  TableFiles(const std::filesystem::path& folder, const TableLayout& layout);
  ~TableFiles();
  TableFiles(const TableFiles&) = delete;
  TableFiles& operator=(const TableFiles&) = delete;

  /// records[i] is record ids[i]; ids: ascending. Consecutive ones are written, or read, at once.
  /// Throws std::runtime_error where the disk fails or is full, naming the file.
  void write(std::span<const std::int64_t> ids, std::span<const std::byte> records) const;
  void read(std::span<const std::int64_t> ids, std::span<std::byte> records) const;
  /// Returns when all that was written is on disk. Throws as write.
  void sync() const;

 private:
  struct Place {
    std::size_t file;
    std::int64_t offset;
  };
  /// Calls transfer(place, first, count) for each run of ids that lie together in one file.
  template <class Transfer>
  void for_each_run(std::span<const std::int64_t> ids, const Transfer& transfer) const;
  [[noreturn]] void fail(std::size_t file, const char* action) const;

  std::filesystem::path folder_;
  TableLayout layout_;
  std::vector<int> descriptors_;
};

}  // namespace scone
