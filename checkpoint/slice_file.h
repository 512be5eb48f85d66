#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/tensor_slice.h"

namespace scone {

/// Name of the file that a rank writes: "rank-00003.h5".
std::string slice_file_name(int rank);

/// What write_slice_file wrote.
struct SliceFile {
  std::int64_t bytes = 0;
  std::string xxh3;                   // of the whole file, 16 hex digits
  std::vector<std::int64_t> offsets;  // byte at which each slice's values begin
};

/// Writes the slices, none of them empty, to a new HDF5 file: each is a contiguous fp32 dataset
/// named NAME@BEGIN ("parameters/main.head@0,64"). The checksum is taken on the way, so memory is
/// read once; the file is fsynced. Throws std::runtime_error naming the file and the cause.
SliceFile write_slice_file(const std::filesystem::path& path, std::span<const TensorSlice> slices);

/// Reads boxes out of slice files by pread. Files stay open with the object, up to a few hundred.
class SliceFileReader {
 public:
  explicit SliceFileReader(std::filesystem::path folder);
  ~SliceFileReader();
  SliceFileReader(const SliceFileReader&) = delete;
  SliceFileReader& operator=(const SliceFileReader&) = delete;

  /// Copies what the stored box (row-major fp32 at byte `offset` of the file) and the target have
  /// in common, reading little more than that. Returns the elements copied. Throws InputError
  /// naming the file where it is missing or ends before.
  std::int64_t read(const std::string& file, std::int64_t offset, const Box& stored,
                    const TensorSlice& target);

 private:
  void read_at(const std::string& file, int descriptor, std::int64_t offset, void* out,
               std::int64_t bytes) const;
  int open(const std::string& file);
  void close_all();

  std::filesystem::path folder_;
  std::map<std::string, int> descriptors_;
  std::vector<std::byte> window_;
};

}  // namespace scone
