// Every test program starts MPI, so that a test may use it alone or under mpirun. A failure on any
// rank fails the run. In a build without MPI it serves one rank.
#include <gtest/gtest.h>
#ifdef SCONE_HAS_MPI
#include <mpi.h>
#endif

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
#ifdef SCONE_HAS_MPI
  if (GTEST_FLAG_GET(list_tests)) return RUN_ALL_TESTS();
  // One process started without mpirun, as root or in a bare container, needs no launcher.
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  int failed = RUN_ALL_TESTS();
  int failed_anywhere = 0;
  MPI_Allreduce(&failed, &failed_anywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return failed_anywhere;
#else
  return RUN_ALL_TESTS();
#endif
}
