#include "checkpoint/table/row_source.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "checkpoint/table/direct_rows.h"
#include "checkpoint/table/memory_region.h"
#include "checkpoint/table/raw_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::size_t kAheadBytes = 8192;  // of rows that are on their way into the cache
constexpr std::size_t kMostAheadRows = 16;
constexpr std::int64_t kPieceBytes = std::int64_t{16} << 20;
constexpr int kReadingThreads = 4;

/// Calls take for records in memory, with those that follow on their way into the second-level
/// cache: it has room for more requests under way than the first has, which makes twice the speed.
template <class Address>
void take_from_memory(std::span<const std::int64_t> ids, std::size_t record_bytes,
                      const Address& address, const RowSource::Take& take) {
  const std::size_t ahead = std::clamp<std::size_t>(kAheadBytes / record_bytes, 1, kMostAheadRows);
  // Inlined always: g++ takes a function that prefetches alone for one without effect, and drops
  // its calls.
  const auto prefetch = [&](std::size_t i) __attribute__((always_inline)) {
    const std::byte* record = address(ids[i]);
    for (std::size_t byte = 0; byte < std::min(record_bytes, kAheadBytes); byte += 64)
      __builtin_prefetch(record + byte, /*write=*/0, /*locality=*/2);
  };
  // A row by itself is read at once.
  for (std::size_t i = 0; i < std::min(ahead, ids.size()) && ids.size() > 1; ++i) prefetch(i);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i + ahead < ids.size()) prefetch(i + ahead);
    take(i, address(ids[i]));
  }
}

class RamRows : public RowSource {
 public:
  RamRows(const std::filesystem::path& bundle, const TableLayout& layout)
      : rows_(layout.rows),
        record_bytes_(layout.bytes_of_record()),
        memory_(static_cast<std::size_t>(rows_ * record_bytes_),
                "the f-gram table of " + bundle.string() + " in RAM (access mmap needs none)") {
    const std::int64_t piece_rows = std::max<std::int64_t>(1, kPieceBytes / record_bytes_);
    const std::int64_t pieces = (rows_ + piece_rows - 1) / piece_rows;
    std::atomic<std::int64_t> next = 0;
    std::mutex mutex;
    std::exception_ptr failure;
    const auto work = [&] {
      try {
        for (std::int64_t piece; (piece = next++) < pieces;) {
          const std::int64_t first = piece * piece_rows;
          read_records(bundle, layout, first, std::min(piece_rows, rows_ - first),
                       memory_.data() + first * record_bytes_);
        }
      } catch (...) {
        next = pieces;
        const std::lock_guard lock(mutex);
        failure = std::current_exception();
      }
    };
    {
      std::vector<std::jthread> threads;
      for (int i = 1; i < std::min<std::int64_t>(kReadingThreads, pieces); ++i)
        threads.emplace_back(work);
      work();
    }
    if (failure) std::rethrow_exception(failure);
  }

  void read(std::span<const std::int64_t> ids, const Take& take) const override {
    check_row_ids(ids, rows_);
    take_from_memory(
        ids, static_cast<std::size_t>(record_bytes_),
        [&](std::int64_t id) { return memory_.data() + id * record_bytes_; }, take);
  }
  TableAccess access() const override { return TableAccess::ram; }

 private:
  std::int64_t rows_, record_bytes_;
  MemoryRegion memory_;
};

class MappedRows : public RowSource {
 public:
  MappedRows(const std::filesystem::path& bundle, TableLayout layout)
      : layout_(std::move(layout)), record_bytes_(layout_.bytes_of_record()) {
    try {
      for (std::int64_t file = 0; file < layout_.files(); ++file) map(bundle, file);
    } catch (...) {
      unmap();
      throw;
    }
  }
  ~MappedRows() override { unmap(); }

  void read(std::span<const std::int64_t> ids, const Take& take) const override {
    check_row_ids(ids, layout_.rows);
    const auto record_bytes = static_cast<std::size_t>(record_bytes_);
    if (files_.size() == 1) {
      const std::byte* records = files_[0] + kTableDataOffset;
      take_from_memory(
          ids, record_bytes, [&](std::int64_t id) { return records + id * record_bytes_; }, take);
      return;
    }
    take_from_memory(
        ids, record_bytes,
        [&](std::int64_t id) {
          const std::int64_t file = id / layout_.rows_per_file;
          return files_[static_cast<std::size_t>(file)] + kTableDataOffset +
                 (id - file * layout_.rows_per_file) * record_bytes_;
        },
        take);
  }
  TableAccess access() const override { return TableAccess::mmap; }

 private:
  void map(const std::filesystem::path& bundle, std::int64_t number) {
    const RawFile file(bundle / table_file_name(number), O_RDONLY);
    const auto bytes = static_cast<std::size_t>(layout_.bytes_of_file(number));
    files_.reserve(files_.size() + 1);
    void* mapping = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.descriptor(), 0);
    if (mapping == MAP_FAILED) file.fail("be mapped", errno);
    files_.push_back(static_cast<const std::byte*>(mapping));
    ::madvise(mapping, bytes, MADV_RANDOM);  // advice: no error matters
  }
  void unmap() {
    for (std::size_t i = 0; i < files_.size(); ++i) {
      ::munmap(const_cast<std::byte*>(files_[i]),
               static_cast<std::size_t>(layout_.bytes_of_file(static_cast<std::int64_t>(i))));
    }
  }

  TableLayout layout_;
  std::int64_t record_bytes_;
  std::vector<const std::byte*> files_;  // their mappings
};

}  // namespace

TableAccess table_access_of(const std::string& name) {
  for (const TableAccess access : {TableAccess::ram, TableAccess::mmap, TableAccess::direct}) {
    if (name == name_of(access)) return access;
  }
  throw InputError("access to the f-gram table: expected ram, mmap or direct, found \"" + name +
                   "\"");
}

const char* name_of(TableAccess access) {
  switch (access) {
    case TableAccess::ram:
      return "ram";
    case TableAccess::mmap:
      return "mmap";
    case TableAccess::direct:
      return "direct";
  }
  return "unknown";
}

void check_row_ids(std::span<const std::int64_t> ids, std::int64_t rows) {
  std::uint64_t largest = 0;  // negative ids are largest
  for (const std::int64_t id : ids) largest = std::max(largest, static_cast<std::uint64_t>(id));
  if (!ids.empty() && largest >= static_cast<std::uint64_t>(rows)) {
    throw std::out_of_range("f-gram table: id " +
                            std::to_string(static_cast<std::int64_t>(largest)) +
                            " is none of its " + std::to_string(rows) + " rows");
  }
}

void read_records(const std::filesystem::path& bundle, const TableLayout& layout,
                  std::int64_t first, std::int64_t count, std::byte* out) {
  const std::int64_t record = layout.bytes_of_record();
  while (count > 0) {
    const std::int64_t number = first / layout.rows_per_file;
    const std::int64_t at = first % layout.rows_per_file;
    const std::int64_t here = std::min(count, layout.rows_per_file - at);
    const RawFile file(bundle / table_file_name(number), O_RDONLY);
    file.read(kTableDataOffset + at * record, {out, static_cast<std::size_t>(here * record)});
    first += here;
    count -= here;
    out += here * record;
  }
}

std::unique_ptr<RowSource> open_rows(const std::filesystem::path& bundle, const TableLayout& layout,
                                     const RowSourceOptions& options, std::string& fallback) {
  fallback.clear();
  if (options.queue_depth < 1 || options.queue_depth > 4096 || options.cache_bytes < 0) {
    throw InputError("f-gram table: expected a queue depth of 1..4096 and a cache of 0 bytes or " +
                     std::string("more, found ") + std::to_string(options.queue_depth) + " and " +
                     std::to_string(options.cache_bytes));
  }
  if (options.access == TableAccess::ram) return std::make_unique<RamRows>(bundle, layout);
  if (options.access == TableAccess::direct) {
    try {
      return open_direct_rows(bundle, layout, options);
    } catch (const DirectRefused& refused) {
      fallback = refused.what();
    }
  }
  return std::make_unique<MappedRows>(bundle, layout);
}

}  // namespace scone
