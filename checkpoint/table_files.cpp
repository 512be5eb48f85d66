#include "checkpoint/table_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "checkpoint/durable_file.h"

namespace scone {

void TableFiles::create(const std::filesystem::path& folder, const TableLayout& layout) {
  std::filesystem::create_directories(folder / "table");
  for (std::int64_t file = 0; file < layout.files(); ++file) {
    const auto path = folder / table_file_name(file);
    write_text_durably(path, table_file_header(layout, file));
    std::filesystem::resize_file(path, static_cast<std::uintmax_t>(layout.bytes_of_file(file)));
  }
}

TableFiles::TableFiles(const std::filesystem::path& folder, const TableLayout& layout)
    : folder_(folder), layout_(layout) {
  for (std::int64_t file = 0; file < layout.files(); ++file) {
    check_table_file(folder, layout, file);
    descriptors_.push_back(::open((folder / table_file_name(file)).c_str(), O_RDWR | O_CLOEXEC));
    if (descriptors_.back() < 0) fail(static_cast<std::size_t>(file), "be opened for writing");
  }
}

TableFiles::~TableFiles() {
  for (const int descriptor : descriptors_)
    if (descriptor >= 0) ::close(descriptor);
}

template <class Transfer>
void TableFiles::for_each_run(std::span<const std::int64_t> ids, const Transfer& transfer) const {
  for (std::size_t begin = 0; begin < ids.size();) {
    const std::int64_t file = ids[begin] / layout_.rows_per_file;
    const std::int64_t file_end = (file + 1) * layout_.rows_per_file;
    std::size_t end = begin + 1;
    while (end < ids.size() && ids[end] == ids[end - 1] + 1 && ids[end] < file_end) ++end;
    const std::int64_t row = ids[begin] - file * layout_.rows_per_file;
    transfer(
        Place{static_cast<std::size_t>(file), kTableDataOffset + row * layout_.bytes_of_record()},
        begin, end - begin);
    begin = end;
  }
}

void TableFiles::write(std::span<const std::int64_t> ids,
                       std::span<const std::byte> records) const {
  const auto record = static_cast<std::size_t>(layout_.bytes_of_record());
  for_each_run(ids, [&](const Place& place, std::size_t first, std::size_t count) {
    std::span<const std::byte> left = records.subspan(first * record, count * record);
    std::int64_t offset = place.offset;
    while (!left.empty()) {
      const ssize_t written = ::pwrite(descriptors_[place.file], left.data(), left.size(), offset);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail(place.file, "be written");
      left = left.subspan(static_cast<std::size_t>(written));
      offset += written;
    }
  });
}

void TableFiles::read(std::span<const std::int64_t> ids, std::span<std::byte> records) const {
  const auto record = static_cast<std::size_t>(layout_.bytes_of_record());
  for_each_run(ids, [&](const Place& place, std::size_t first, std::size_t count) {
    std::span<std::byte> left = records.subspan(first * record, count * record);
    std::int64_t offset = place.offset;
    while (!left.empty()) {
      const ssize_t got = ::pread(descriptors_[place.file], left.data(), left.size(), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) fail(place.file, "be read");
      left = left.subspan(static_cast<std::size_t>(got));
      offset += got;
    }
  });
}

void TableFiles::sync() const {
  for (std::size_t file = 0; file < descriptors_.size(); ++file)
    if (::fsync(descriptors_[file]) != 0) fail(file, "be synced to disk");
}

void TableFiles::fail(std::size_t file, const char* action) const {
  throw std::runtime_error(fmt::format(
      "{}: cannot {}: {}", (folder_ / table_file_name(static_cast<std::int64_t>(file))).string(),
      action, std::strerror(errno)));
}

}  // namespace scone
