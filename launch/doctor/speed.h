#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace scone {

struct AllReduceSpeed {
  std::int64_t bytes = 0;  // of each rank's vector
  double seconds = 0;      // of one, mean
  std::int64_t rounds = 0;
  double gigabytes_per_second() const { return static_cast<double>(bytes) / seconds / 1e9; }
};

/// All-reduces 1 KiB, 1 MiB and 64 MiB of floats for about two seconds in all. Collective. Throws
/// std::runtime_error where a sum is wrong.
std::vector<AllReduceSpeed> measure_all_reduce(Communicator& world);

struct DiskSpeed {
  std::int64_t bytes = 0;
  double write_seconds = 0, read_seconds = 0;  // with fsync; past the page cache
  std::int64_t capacity = 0, free = 0;         // of the file system, in bytes
  std::vector<int> blind;                      // ranks that do not see rank 0's file there
  std::string error;                           // why it cannot be written; empty: it can
  double write_speed() const { return static_cast<double>(bytes) / write_seconds / 1e6; }  // MB/s
  double read_speed() const { return static_cast<double>(bytes) / read_seconds / 1e6; }
};

/// Rank 0 writes a file in `folder`, syncs it and reads it, for about two seconds. The file has no
/// name while it does, so that nothing is left where it is killed. Collective.
DiskSpeed measure_disk(const std::filesystem::path& folder, Communicator& world);

/// Seconds by which each rank's clock is ahead of rank 0's, to about a barrier's time. Collective.
std::vector<double> measure_clocks(Communicator& world);

}  // namespace scone
