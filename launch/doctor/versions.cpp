#include "launch/doctor/versions.h"

#include <fmt/format.h>
#include <hdf5.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "model/ops/ops.h"

#ifdef SCONE_HAS_CUDA
#include <cuda_runtime.h>

#include "parallel/cuda/device.h"
#endif
#ifdef SCONE_HAS_NCCL
#include <nccl.h>
#endif

namespace scone {
namespace {

Version hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return {"HDF5", fmt::format("{}.{}.{}", major, minor, release), ""};
}

Version cuda_version() {
#ifdef SCONE_HAS_CUDA
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);  // 0: there is none
  cudaRuntimeGetVersion(&runtime);
  const auto text = [](int version) {
    return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
  };
  return {"CUDA", "runtime " + text(runtime),
          (driver == 0 ? std::string("no driver") : "driver of " + text(driver)) +
              ", built for " SCONE_CUDA_ARCHITECTURES};
#else
  return {"CUDA", "not built in", ""};
#endif
}

Version nccl_version() {
#ifdef SCONE_HAS_NCCL
  int version = 0;
  ncclGetVersion(&version);
  return {"NCCL", fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100), ""};
#else
  return {"NCCL", "not built in", ""};
#endif
}

}  // namespace

std::vector<Version> program_versions(const Session& session) {
  return {{"scone", SCONE_VERSION, fmt::format("revision {}", SCONE_REVISION)},
          {"compiler", SCONE_COMPILER,
           fmt::format("{}; operations by {}", SCONE_COMPILE_FLAGS, cpu_instruction_set())},
          {"MPI", session.mpi_library(), session.mpi_threads()},
          hdf5_version(),
          cuda_version(),
          nccl_version()};
}

std::string slurm_version() {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> program(
      popen("sinfo --version 2>/dev/null", "r"), pclose);
  std::array<char, 100> line{};
  if (!program || std::fgets(line.data(), line.size(), program.get()) == nullptr) return "";
  std::string text = line.data();  // "slurm-wlm 22.05.8"
  text = text.substr(0, text.find('\n'));
  return text.substr(text.find(' ') + 1);
}

std::vector<DeviceFacts> cuda_devices() {
  std::vector<DeviceFacts> devices;
#ifdef SCONE_HAS_CUDA
  int count = 0;
  if (cuda_problem().empty()) cuda::check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties{};
    cuda::check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    cuda::check(cudaSetDevice(index), "cudaSetDevice");
    std::size_t free = 0, total = 0;
    cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    devices.push_back(
        {properties.name, static_cast<std::int64_t>(total), static_cast<std::int64_t>(free)});
  }
#endif
  return devices;
}

std::string cuda_problem() {
#ifdef SCONE_HAS_CUDA
  return cuda::unavailable_reason();
#else
  return "";
#endif
}

}  // namespace scone
