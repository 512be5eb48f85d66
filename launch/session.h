#pragma once

#ifdef SCONE_HAS_MPI
#include <mpi.h>
#endif

#include <memory>
#include <string>

#include "launch/launcher.h"
#include "parallel/communicator.h"

namespace scone {

/// MPI for the life of the program, and the ways in which an error ends its ranks. In a build
/// without MPI one rank (session_without_mpi.cpp).
class Session {
 public:
  Session(int& argc, char**& argv);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// describe_launcher(), of the environment before MPI started.
  const std::string& launcher() const { return launcher_; }

  /// Why the ranks cannot work together, with what to do; empty: they can. Where there are several
  /// and this MPI does not let several threads use it at once, which the batch stream's thread
  /// does; where srun started several processes of which each takes itself for the only one, or
  /// starts them so that MPI could not start; where a build without MPI is one of several ranks.
  std::string problem() const;
  /// "Open MPI v4.1.4", and "MPI_THREAD_MULTIPLE", the threads that may call it.
  std::string mpi_library() const;
  std::string mpi_threads() const;
  /// Throws InputError where there is a problem.
  void check_ranks() const;

  /// Collective. All ranks as one group, which must go before the session does.
  std::unique_ptr<Communicator> make_world() const;

  /// Reports an error of this rank and returns the exit code, or ends all ranks at once. Where all
  /// ranks fail within a moment (a configuration that every rank reads), each distinct message is
  /// printed once and all leave in order; else the others are at work or waiting for this rank, so
  /// it prints its message and aborts them.
  int report(const std::string& message, int code);

  /// Collective. Rank `rank` prints how to attach a debugger to it and waits for that; the others
  /// wait for it. Throws InputError where there is no such rank.
  void wait_for_debugger(int rank);

 private:
  const std::string launcher_ = describe_launcher();
  int rank_ = 0, size_ = 1;
#ifdef SCONE_HAS_MPI
  bool all_failed();

  int provided_ = 0;
  std::string no_mpi_;               // why MPI was not started; this process is then by itself
  MPI_Comm errors_ = MPI_COMM_NULL;  // used by report() and wait_for_debugger() alone
#endif
};

/// Ends all ranks with exit code `code`, from any thread, whatever the others do: prints
/// `scone: error: [rank r of n, host]: message`, gives other ranks that come here at about the same
/// time a second to print theirs, and aborts. Where the ranks cannot be aborted this process ends,
/// which makes mpirun end the others.
[[noreturn]] void end_all_ranks(const std::string& message, int code);

}  // namespace scone

/// Set by a debugger, in a rank that waits for it (--hang-rank).
extern "C" volatile int scone_debugger_attached;
