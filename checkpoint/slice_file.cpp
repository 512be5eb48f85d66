#include "checkpoint/slice_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "checkpoint/file_checksum.h"
#include "data/hdf5_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kPiece = std::int64_t{1} << 20;         // checksummed, then written
constexpr std::int64_t kWriteBehind = std::int64_t{32} << 20;  // handed to the disk at a time
constexpr std::int64_t kWindow = std::int64_t{1} << 20;
constexpr std::int64_t kLongRun = std::int64_t{128} << 10;  // read straight into the target
constexpr std::int64_t kLongGap = std::int64_t{16} << 10;   // cheaper skipped than read
constexpr std::size_t kMostOpenFiles = 256;  // a process may have 1024, and there is a file a rank

/// A file that is open for reading and writing, closed with its scope.
class OpenFile {
 public:
  explicit OpenFile(fs::path path) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
    if (descriptor_ < 0) fail("be opened", errno);
  }
  ~OpenFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  void read(std::int64_t offset, std::span<std::byte> bytes) const {
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t count = ::pread(descriptor_, bytes.data() + done, bytes.size() - done,
                                    offset + static_cast<std::int64_t>(done));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) fail("be read back", count < 0 ? errno : EIO);
      done += static_cast<std::size_t>(count);
    }
  }
  void write(std::int64_t offset, std::span<const std::byte> bytes) const {
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t count = ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done,
                                     offset + static_cast<std::int64_t>(done));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) fail("be written", count < 0 ? errno : ENOSPC);
      done += static_cast<std::size_t>(count);
    }
  }
  /// Lets the disk begin with these bytes, so that the last sync finds little left to do.
  void begin_sync(std::int64_t offset, std::int64_t bytes) const {
    ::sync_file_range(descriptor_, offset, bytes, SYNC_FILE_RANGE_WRITE);  // a hint: may fail
  }
  void sync_and_close() {
    if (::fsync(descriptor_) != 0) fail("be synced to disk", errno);
    if (::close(std::exchange(descriptor_, -1)) != 0) fail("be closed", errno);
  }

 private:
  [[noreturn]] void fail(const char* action, int error) const {
    throw std::runtime_error(
        fmt::format("{}: cannot {}: {}", path_.string(), action, std::strerror(error)));
  }
  fs::path path_;
  int descriptor_ = -1;
};

}  // namespace

std::string slice_file_name(int rank) { return fmt::format("rank-{:05d}.h5", rank); }

SliceFile write_slice_file(const fs::path& path, std::span<const TensorSlice> slices) {
  SliceFile written;
  {
    Hdf5File file = Hdf5File::create(path);
    file.set_attribute("format", std::string("scone-checkpoint-slices"));
    file.set_attribute("format_version", 2);
    for (const TensorSlice& slice : slices) {
      const std::string name = fmt::format("{}@{}", slice.name, fmt::join(slice.begin, ","));
      file.create_dataset(name, H5T_IEEE_F32LE, slice.values.shape());
      written.offsets.push_back(file.dataset_offset(name));
    }
    file.close();
  }
  // HDF5 has written all but the values. What lies between them is read back for the checksum.
  OpenFile file(path);
  written.bytes = file_bytes(path);
  std::vector<std::size_t> order(slices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return written.offsets[a] < written.offsets[b]; });
  StreamingChecksum checksum;
  std::int64_t position = 0, synced = 0;
  std::vector<std::byte> between;
  const auto add_until = [&](std::int64_t end) {
    between.resize(static_cast<std::size_t>(end - position));
    file.read(position, between);
    checksum.add(between);
    position = end;
  };
  for (const std::size_t index : order) {
    add_until(written.offsets[index]);
    auto rest = std::as_bytes(slices[index].values.span<float>());
    while (!rest.empty()) {
      const auto piece = rest.first(std::min(rest.size(), static_cast<std::size_t>(kPiece)));
      checksum.add(piece);
      file.write(position, piece);
      position += static_cast<std::int64_t>(piece.size());
      rest = rest.subspan(piece.size());
      if (position - synced >= kWriteBehind) {
        file.begin_sync(synced, position - synced);
        synced = position;
      }
    }
  }
  // HDF5 leaves the file as long as its last dataset or metadata; a last dataset extends it.
  written.bytes = std::max(written.bytes, position);
  add_until(written.bytes);
  file.sync_and_close();
  written.xxh3 = checksum.hex();
  return written;
}

SliceFileReader::SliceFileReader(fs::path folder) : folder_(std::move(folder)) {}

SliceFileReader::~SliceFileReader() { close_all(); }

void SliceFileReader::close_all() {
  for (const auto& [file, descriptor] : descriptors_) ::close(descriptor);
  descriptors_.clear();
}

int SliceFileReader::open(const std::string& file) {
  const auto known = descriptors_.find(file);
  if (known != descriptors_.end()) return known->second;
  if (descriptors_.size() == kMostOpenFiles) close_all();
  const fs::path path = folder_ / file;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw InputError(fmt::format("{}: cannot be opened: {}", path.string(), std::strerror(errno)));
  }
  descriptors_[file] = descriptor;
  return descriptor;
}

void SliceFileReader::read_at(const std::string& file, int descriptor, std::int64_t offset,
                              void* out, std::int64_t bytes) const {
  auto* to = static_cast<std::byte*>(out);
  for (std::int64_t done = 0; done < bytes;) {
    const ssize_t count =
        ::pread(descriptor, to + done, static_cast<std::size_t>(bytes - done), offset + done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      throw InputError(fmt::format("{}: cannot be read from byte {}: {}", (folder_ / file).string(),
                                   offset + done,
                                   count < 0 ? std::strerror(errno) : "the file is truncated"));
    }
    done += count;
  }
}

std::int64_t SliceFileReader::read(const std::string& file, std::int64_t offset, const Box& stored,
                                   const TensorSlice& target) {
  const Box wanted{target.begin, target.values.shape()};
  const auto part = overlap_of(stored, wanted);
  if (!part) return 0;
  constexpr auto kElement = static_cast<std::int64_t>(sizeof(float));
  const int descriptor = open(file);
  const BoxRuns runs(stored, wanted, *part);
  const std::int64_t run_bytes = runs.run_elements() * kElement;
  auto* out = target.values.data<float>();
  if (run_bytes >= kLongRun || runs.gap_in_a() * kElement >= kLongGap) {
    runs.for_each([&](std::int64_t in_file, std::int64_t in_target) {
      read_at(file, descriptor, offset + in_file * kElement, out + in_target, run_bytes);
    });
  } else {
    const std::int64_t end = offset + elements_of(stored.extent) * kElement;
    std::int64_t begin = 0, size = 0;  // of the window in the file
    window_.resize(static_cast<std::size_t>(kWindow));
    runs.for_each([&](std::int64_t in_file, std::int64_t in_target) {
      const std::int64_t at = offset + in_file * kElement;
      if (at < begin || at + run_bytes > begin + size) {
        begin = at;
        size = std::min(kWindow, end - at);
        read_at(file, descriptor, begin, window_.data(), size);
      }
      std::memcpy(out + in_target, window_.data() + (at - begin),
                  static_cast<std::size_t>(run_bytes));
    });
  }
  return elements_of(part->extent);
}

}  // namespace scone
