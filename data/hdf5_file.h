#pragma once

#include <hdf5.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace scone {

/// An open HDF5 file (RAII) with the few forms that our formats use: contiguous datasets and scalar
/// attributes on the root group. All methods hold one lock of the process. Errors throw InputError
/// (reading) or std::runtime_error (writing), naming file and object.
class Hdf5File {
 public:
  /// Opens read-only. Throws InputError: no such file, not HDF5 or truncated.
  static Hdf5File open(const std::filesystem::path& path);
  /// Creates; an existing file is replaced.
  static Hdf5File create(const std::filesystem::path& path);
  ~Hdf5File();
  Hdf5File(Hdf5File&& other) noexcept;
  Hdf5File(const Hdf5File&) = delete;

  const std::filesystem::path& path() const { return path_; }
  bool has_attribute(const std::string& name) const;
  bool has_dataset(const std::string& name) const;
  std::string string_attribute(const std::string& name) const;
  std::int64_t integer_attribute(const std::string& name) const;
  void set_attribute(const std::string& name, const std::string& value);
  void set_attribute(const std::string& name, std::int64_t value);

  std::vector<std::int64_t> dataset_shape(const std::string& name) const;
  /// Bytes of one element where it is stored as an unsigned little-endian integer; 0: another type.
  std::size_t unsigned_element_bytes(const std::string& name) const;
  /// Whether a dataset is stored as int64, little-endian.
  bool is_int64(const std::string& name) const;
  /// memory_type: H5T_NATIVE_FLOAT, ..; reads `count` entries of axis 0 from `first` (count -1:
  /// all).
  void read(const std::string& name, hid_t memory_type, void* out, std::int64_t first = 0,
            std::int64_t count = -1) const;
  /// Creates intermediate groups of the name. type: the stored type, and data's type in memory.
  void write(const std::string& name, hid_t type, const std::vector<std::int64_t>& shape,
             const void* data);
  /// Creates a contiguous dataset without data, and writes a part of it along axis 0.
  void create_dataset(const std::string& name, hid_t type, const std::vector<std::int64_t>& shape);
  void write_part(const std::string& name, hid_t memory_type, std::int64_t first,
                  std::int64_t count, const void* data);
  /// Names of all datasets, with their groups, sorted.
  std::vector<std::string> dataset_names() const;
  /// Byte offset of a contiguous dataset in the file; -1 where it has none.
  std::int64_t dataset_offset(const std::string& name) const;
  /// Flushes and closes, and reports errors that a destructor would have to swallow.
  void close();

 private:
  Hdf5File(std::filesystem::path path, hid_t id) : path_(std::move(path)), id_(id) {}
  std::filesystem::path path_;
  hid_t id_ = -1;
};

}  // namespace scone
