// Every program of GPU tests opens the device of its rank first. Where there is none it says so,
// and fails if SCONE_REQUIRE_GPU is set, as tests/gpu.sh does.
#include <gtest/gtest.h>
#ifdef SCONE_HAS_MPI
#include <mpi.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "parallel/communicator.h"
#include "parallel/cuda/device.h"

namespace {

int run_all_tests(int rank) {
  try {
    scone::open_cuda_device(scone::mpi_node_place().rank, rank);
    if (rank == 0) std::printf("%s\n", scone::describe_device().c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return RUN_ALL_TESTS();
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (GTEST_FLAG_GET(list_tests)) return RUN_ALL_TESTS();
  const std::string reason = scone::cuda::unavailable_reason();
  if (!reason.empty()) {
    const bool required = std::getenv("SCONE_REQUIRE_GPU") != nullptr;
    std::printf(
        "%s: %s\n",
        required ? "SCONE_REQUIRE_GPU is set, but a device is missing" : "skipped: no CUDA device",
        reason.c_str());
    return required ? 1 : 0;
  }
#ifdef SCONE_HAS_MPI
  int provided = 0, rank = 0, failed_anywhere = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const int failed = run_all_tests(rank);
  MPI_Allreduce(&failed, &failed_anywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return failed_anywhere;
#else
  return run_all_tests(0);
#endif
}
