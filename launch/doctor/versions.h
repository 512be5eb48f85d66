#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/session.h"

namespace scone {

/// A line of the report, and the same for scripts.
struct Version {
  std::string name;   // "HDF5"
  std::string text;   // "1.10.8"
  std::string about;  // more of it, or empty
};

/// This program: its version and revision, its compiler, and the libraries that it runs with.
std::vector<Version> program_versions(const Session& session);

/// "22.05.8"; empty: no Slurm is installed, or it is not configured here. Runs one of its programs.
std::string slurm_version();

/// A CUDA device that this process sees.
struct DeviceFacts {
  std::string name;
  std::int64_t memory = 0, memory_free = 0;
};
/// Of a build with CUDA, else empty.
std::vector<DeviceFacts> cuda_devices();
/// Why a build with CUDA can use no device here; empty: it can, or it has no CUDA.
std::string cuda_problem();

}  // namespace scone
