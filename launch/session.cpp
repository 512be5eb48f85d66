#include "launch/session.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

#include "launch/slurm_job.h"
#include "parallel/error.h"

extern "C" {
volatile int scone_debugger_attached = 0;
}

namespace scone {
namespace {

std::string host() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

void print(const std::string& text) {
  std::fflush(stdout);
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

std::string error_line(int rank, int size, const std::string& message) {
  return fmt::format("scone: error: [rank {} of {}, {}]: {}\n", rank, size, host(), message);
}

/// MPI_Abort, which may wait for a lock that a thread inside MPI holds, or for a daemon that is
/// gone.
[[noreturn]] void abort_ranks(int code) {
  try {
    std::thread([code] {
      std::this_thread::sleep_for(std::chrono::seconds(3));
      std::_Exit(code);
    }).detach();
  } catch (const std::system_error&) {
    std::_Exit(code);  // no thread to be had: without the attempt
  }
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace

Session::Session(int& argc, char**& argv) {
#if defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION < 5
  // It would end the process, with advice on how to build Open MPI.
  const auto variable = [](const char* name) -> const char* { return std::getenv(name); };
  if (const auto job = find_slurm_job()) no_mpi_ = srun_problem(*job, variable);
  if (!no_mpi_.empty()) return;
#endif
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided_);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  MPI_Comm_dup(MPI_COMM_WORLD, &errors_);
}

Session::~Session() {
  if (!no_mpi_.empty()) return;
  MPI_Comm_free(&errors_);
  MPI_Finalize();
}

std::string Session::problem() const {
  if (!no_mpi_.empty()) return no_mpi_;
  if (size_ > 1 && provided_ < MPI_THREAD_MULTIPLE)
    return fmt::format(
        "this MPI library gives thread level {}, but {} ranks need {} (MPI_THREAD_MULTIPLE): use a "
        "library that was built with it, or one rank",
        provided_, size_, MPI_THREAD_MULTIPLE);
  const auto job = find_slurm_job();
  if (size_ == 1 && job && job->by_srun && job->tasks > 1)
    return fmt::format(
        "srun started {} processes (--mpi={}), but to MPI each is the only one: start them with "
        "`srun --mpi=pmix`, or with mpirun",
        job->tasks, job->mpi);
  return "";
}

std::string Session::mpi_library() const {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string all(text.data(), static_cast<std::size_t>(length));
  return all.substr(0, all.find_first_of(",\n"));  // of much that is about its build
}

std::string Session::mpi_threads() const {
  if (!no_mpi_.empty()) return "not started";
  switch (provided_) {
    case MPI_THREAD_MULTIPLE:
      return "MPI_THREAD_MULTIPLE";
    case MPI_THREAD_SERIALIZED:
      return "MPI_THREAD_SERIALIZED";
    case MPI_THREAD_FUNNELED:
      return "MPI_THREAD_FUNNELED";
    default:
      return "MPI_THREAD_SINGLE";
  }
}

void Session::check_ranks() const {
  if (const std::string found = problem(); !found.empty()) throw InputError(found);
}

std::unique_ptr<Communicator> Session::make_world() const {
  return size_ > 1 ? make_mpi_communicator() : make_self_communicator();
}

int Session::report(const std::string& message, int code) {
  if (!no_mpi_.empty()) {
    print(fmt::format("scone: error: {}\n", message));
    return code;
  }
  if (size_ > 1 && !all_failed()) {
    print(error_line(rank_, size_, message));
    // Time for mpirun to forward the message before it tells of the abort.
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    abort_ranks(code);
  }
  std::vector<std::uint64_t> hashes(static_cast<std::size_t>(size_));
  const std::uint64_t own = std::hash<std::string>{}(message);
  MPI_Allgather(&own, 1, MPI_UINT64_T, hashes.data(), 1, MPI_UINT64_T, errors_);
  const bool one_message = std::count(hashes.begin(), hashes.end(), own) == size_;
  const auto first = std::find(hashes.begin(), hashes.end(), own) - hashes.begin();
  if (first == rank_)
    print(one_message ? fmt::format("scone: error: {}\n", message)
                      : error_line(rank_, size_, message));
  int agreed = code;
  MPI_Allreduce(&code, &agreed, 1, MPI_INT, MPI_MAX, errors_);
  return agreed;
}

/// Whether every rank comes here within half a second.
bool Session::all_failed() {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Ibarrier(errors_, &request);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
  int done = 0;
  while (done == 0 && std::chrono::steady_clock::now() < deadline) {
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return done != 0;
}

void Session::wait_for_debugger(int rank) {
  if (rank < 0 || rank >= size_)
    throw InputError(
        fmt::format("--hang-rank {}: there is no such rank; expected 0 to {}", rank, size_ - 1));
  if (rank == rank_) {
    print(
        fmt::format("rank {} waits for a debugger: host {}, pid {}: gdb -p {}, then `set var "
                    "scone_debugger_attached = 1` and `continue`\n",
                    rank, host(), getpid(), getpid()));
    while (scone_debugger_attached == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  if (!no_mpi_.empty()) return;
  // The others may wait long, so they leave their cores alone.
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Ibarrier(errors_, &request);
  for (int done = 0; done == 0;) {
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

void end_all_ranks(const std::string& message, int code) {
  int rank = 0, size = 1, running = 0;
  MPI_Initialized(&running);
  if (running == 0) {
    print(error_line(rank, size, message));
    std::_Exit(code);
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  print(error_line(rank, size, message));
  std::this_thread::sleep_for(std::chrono::seconds(1));
  std::fflush(stdout);
  abort_ranks(code);
}

}  // namespace scone
