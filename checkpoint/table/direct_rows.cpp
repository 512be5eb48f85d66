#include "checkpoint/table/direct_rows.h"

#ifndef SCONE_HAS_LIBURING

namespace scone {

std::unique_ptr<RowSource> open_direct_rows(const std::filesystem::path& bundle, const TableLayout&,
                                            const RowSourceOptions&) {
  throw DirectRefused(bundle.string() +
                      ": the f-gram table is mapped: this scone was built without liburing");
}

}  // namespace scone

#else

#include <fcntl.h>
#include <liburing.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/table/memory_region.h"
#include "checkpoint/table/raw_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::int64_t kUsualAlignment = 4096;                   // where the kernel does not tell
constexpr std::int64_t kMostSlotBytes = std::int64_t{64} << 20;  // of one call's reads in flight
constexpr int kMostRetries = 1000;

/// A read that the kernel answered with an error.
class ReadFailed : public std::runtime_error {
 public:
  ReadFailed(const std::string& what, int code) : std::runtime_error(what), error(code) {}
  int error;
};

/// One read of a file: whole blocks that hold one or several rows.
struct Request {
  std::int64_t file, offset;
  std::int64_t bytes;   // to read
  std::int64_t needed;  // of them, to the end of the last row: the file may end there
  std::int64_t done;
  std::size_t first, count;  // the rows, in the order of the ids
};

/// A ring with its memory, of one call at a time (RAII).
class Ring {
 public:
  /// Throws DirectRefused: the kernel refuses it.
  Ring(const std::vector<RawFile>& files, unsigned slots, std::size_t slot_bytes)
      : memory_(slots * slot_bytes, "reads of f-gram rows"), slot_bytes_(slot_bytes) {
    const int result = ::io_uring_queue_init(slots, &ring_, 0);
    if (result < 0)
      throw DirectRefused(std::string("io_uring is refused: ") + std::strerror(-result));
    // Both save the kernel work on each read; where a limit forbids them, reads go without.
    const iovec all{memory_.data(), memory_.size()};
    fixed_memory_ = ::io_uring_register_buffers(&ring_, &all, 1) == 0;
    std::vector<int> descriptors;
    for (const RawFile& file : files) descriptors.push_back(file.descriptor());
    fixed_files_ = ::io_uring_register_files(&ring_, descriptors.data(),
                                             static_cast<unsigned>(descriptors.size())) == 0;
    for (unsigned slot = slots; slot > 0; --slot) free_.push_back(slot - 1);
    request_of_.resize(slots);
  }
  ~Ring() { ::io_uring_queue_exit(&ring_); }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  bool has_free_slot() const { return !free_.empty(); }
  bool in_flight() const { return free_.size() < request_of_.size(); }
  bool broken() const { return broken_; }
  std::byte* memory_of(unsigned slot) const { return memory_.data() + slot * slot_bytes_; }
  std::size_t request_of(unsigned slot) const { return request_of_[slot]; }
  void release(unsigned slot) { free_.push_back(slot); }

  void start(std::size_t number, const Request& request, const std::vector<RawFile>& files) {
    const unsigned slot = free_.back();
    free_.pop_back();
    request_of_[slot] = number;
    queue(slot, request, files);
  }
  /// The rest of a request whose first `done` bytes are there.
  void queue(unsigned slot, const Request& request, const std::vector<RawFile>& files) {
    io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);  // as many as slots: there is one
    const auto bytes = static_cast<unsigned>(request.bytes - request.done);
    const auto offset = static_cast<std::uint64_t>(request.offset + request.done);
    std::byte* memory = memory_of(slot) + request.done;
    const int file = fixed_files_ ? static_cast<int>(request.file)
                                  : files[static_cast<std::size_t>(request.file)].descriptor();
    if (fixed_memory_) {
      ::io_uring_prep_read_fixed(entry, file, memory, bytes, offset, 0);
    } else {
      ::io_uring_prep_read(entry, file, memory, bytes, offset);
    }
    if (fixed_files_) ::io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
    ::io_uring_sqe_set_data64(entry, slot);
  }
  /// Hands what is queued to the kernel, and waits until `finished` reads are done.
  void submit(unsigned finished) {
    int result = 0;
    for (int tries = 0; tries < kMostRetries; ++tries) {
      result = ::io_uring_submit_and_wait(&ring_, finished);
      if (result >= 0) return;
      if (result != -EINTR && result != -EAGAIN && result != -EBUSY) break;
    }
    broken_ = true;
    throw ReadFailed(std::string("f-gram rows: io_uring: ") + std::strerror(-result), -result);
  }
  /// Calls finish(slot, result) for each read that is done.
  template <class Finish>
  void reap(const Finish& finish) {
    for (io_uring_cqe* done = nullptr; ::io_uring_peek_cqe(&ring_, &done) == 0;) {
      const auto slot = static_cast<unsigned>(::io_uring_cqe_get_data64(done));
      const int result = done->res;
      ::io_uring_cqe_seen(&ring_, done);
      finish(slot, result);
    }
  }
  /// Waits for all reads under way, and drops them.
  void drain() {
    while (in_flight() && !broken_) {
      reap([&](unsigned slot, int) { release(slot); });
      if (in_flight()) submit(1);
    }
  }

  // Scratch of a call.
  std::vector<std::pair<std::int64_t, std::size_t> > order;  // (id, place in the call)
  std::vector<Request> requests;

 private:
  MemoryRegion memory_;
  std::size_t slot_bytes_;
  io_uring ring_{};
  bool fixed_memory_ = false, fixed_files_ = false, broken_ = false;
  std::vector<unsigned> free_;
  std::vector<std::size_t> request_of_;  // by slot
};

struct Alignment {
  std::int64_t memory = kUsualAlignment, offset = kUsualAlignment;
};

Alignment alignment_of(const RawFile& file) {
  Alignment result;
#ifdef STATX_DIOALIGN
  struct statx status {};
  if (::statx(file.descriptor(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0) {
    if (status.stx_dio_offset_align == 0)
      throw DirectRefused(file.path().string() + ": its file system does not read past the cache");
    result.memory = status.stx_dio_mem_align;
    result.offset = status.stx_dio_offset_align;
  }
#endif
  return result;
}

RawFile open_direct(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (descriptor < 0 && error == EINVAL)
    throw DirectRefused(path.string() + ": its file system refuses O_DIRECT");
  return {path, O_RDONLY | O_DIRECT};
}

class DirectRows : public RowSource {
 public:
  DirectRows(const std::filesystem::path& bundle, const TableLayout& layout,
             const RowSourceOptions& options)
      : layout_(layout), record_(layout.bytes_of_record()) {
    std::int64_t memory_alignment = 1;
    for (std::int64_t file = 0; file < layout.files(); ++file) {
      files_.push_back(open_direct(bundle / table_file_name(file)));
      const Alignment alignment = alignment_of(files_.back());
      block_ = std::max(block_, alignment.offset);
      memory_alignment = std::max(memory_alignment, alignment.memory);
    }
    const std::int64_t unit = std::max(block_, memory_alignment);
    slot_bytes_ = (record_ + block_ - 1 + unit) / unit * unit;
    slots_ = static_cast<unsigned>(
        std::clamp<std::int64_t>(kMostSlotBytes / slot_bytes_, 1, options.queue_depth));
    if (layout.rows > 0) probe();
    cached_ = std::min(layout.rows, options.cache_bytes / record_);
    cache_ = MemoryRegion(static_cast<std::size_t>(cached_ * record_), "the cache of f-gram rows");
    read_records(bundle, layout, 0, cached_, cache_.data());
  }

  void read(std::span<const std::int64_t> ids, const Take& take) const override {
    check_row_ids(ids, layout_.rows);
    const auto take_cached = [&] {
      for (std::size_t i = 0; i < ids.size(); ++i)
        if (ids[i] < cached_) take(i, cache_.data() + ids[i] * record_);
    };
    if (std::all_of(ids.begin(), ids.end(), [&](std::int64_t id) { return id < cached_; }))
      return take_cached();
    std::unique_ptr<Ring> ring = lease();
    try {
      make_requests(ids, *ring);
      std::size_t next = 0;
      start(*ring, next);
      ring->submit(0);
      take_cached();  // while the others are read
      while (ring->in_flight()) {
        ring->submit(1);
        ring->reap([&](unsigned slot, int result) { finish(*ring, slot, result, take); });
        start(*ring, next);
      }
    } catch (...) {
      ring->drain();
      give_back(std::move(ring));
      throw;
    }
    give_back(std::move(ring));
  }
  TableAccess access() const override { return TableAccess::direct; }

 private:
  /// Some file systems take the flag and refuse the read.
  void probe() {
    const std::int64_t ids[] = {0};
    try {
      read(ids, [](std::size_t, const std::byte*) {});
    } catch (const ReadFailed& failed) {
      if (failed.error != EINVAL && failed.error != EOPNOTSUPP && failed.error != ENOSYS) throw;
      throw DirectRefused(failed.what());
    }
  }

  std::unique_ptr<Ring> lease() const {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        std::unique_ptr<Ring> ring = std::move(idle_.back());
        idle_.pop_back();
        return ring;
      }
    }
    return std::make_unique<Ring>(files_, slots_, static_cast<std::size_t>(slot_bytes_));
  }
  void give_back(std::unique_ptr<Ring> ring) const {
    if (ring->broken()) return;
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(ring));
  }

  std::int64_t offset_of(std::int64_t id) const {
    return kTableDataOffset + id % layout_.rows_per_file * record_;
  }

  /// One request for all rows in the same blocks, so that each distinct id is read once.
  void make_requests(std::span<const std::int64_t> ids, Ring& ring) const {
    ring.order.clear();
    ring.requests.clear();
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] >= cached_) ring.order.emplace_back(ids[i], i);
    std::sort(ring.order.begin(), ring.order.end());
    for (std::size_t i = 0; i < ring.order.size(); ++i) {
      const std::int64_t id = ring.order[i].first;
      const std::int64_t file = id / layout_.rows_per_file;
      const std::int64_t begin = offset_of(id), end = begin + record_;
      if (!ring.requests.empty()) {
        Request& last = ring.requests.back();
        if (last.file == file && end <= last.offset + last.bytes) {
          last.needed = end - last.offset;
          ++last.count;
          continue;
        }
      }
      const std::int64_t offset = begin / block_ * block_;
      const std::int64_t blocks_end = (end + block_ - 1) / block_ * block_;
      ring.requests.push_back({file, offset, blocks_end - offset, end - offset, 0, i, 1});
    }
  }

  void start(Ring& ring, std::size_t& next) const {
    for (; next < ring.requests.size() && ring.has_free_slot(); ++next)
      ring.start(next, ring.requests[next], files_);
  }

  void finish(Ring& ring, unsigned slot, int result, const Take& take) const {
    Request& request = ring.requests[ring.request_of(slot)];
    if (result == -EINTR || result == -EAGAIN) return ring.queue(slot, request, files_);
    const auto fail = [&](const std::string& what, int error) {
      ring.release(slot);
      throw ReadFailed(files_[static_cast<std::size_t>(request.file)].path().string() +
                           ": at byte " + std::to_string(request.offset + request.done) + ": " +
                           what,
                       error);
    };
    if (result < 0) fail(std::string("cannot be read: ") + std::strerror(-result), -result);
    if (request.done + result < request.needed) {
      // A short read goes on from the last whole block.
      const std::int64_t done = (request.done + result) / block_ * block_;
      if (done == request.done) fail("the file ends; it was cut after it was opened", 0);
      request.done = done;
      return ring.queue(slot, request, files_);
    }
    const std::byte* memory = ring.memory_of(slot);
    ring.release(slot);
    for (std::size_t i = request.first; i < request.first + request.count; ++i) {
      const auto& [id, place] = ring.order[i];
      take(place, memory + (offset_of(id) - request.offset));
    }
  }

  TableLayout layout_;
  std::int64_t record_;
  std::vector<RawFile> files_;
  std::int64_t block_ = 1;  // reads begin and end at its multiples
  std::int64_t slot_bytes_ = 0;
  unsigned slots_ = 1;
  std::int64_t cached_ = 0;  // rows in the cache
  MemoryRegion cache_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Ring> > idle_;
};

}  // namespace

std::unique_ptr<RowSource> open_direct_rows(const std::filesystem::path& bundle,
                                            const TableLayout& layout,
                                            const RowSourceOptions& options) {
  return std::make_unique<DirectRows>(bundle, layout, options);
}

}  // namespace scone

#endif
