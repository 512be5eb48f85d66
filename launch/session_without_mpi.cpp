// A session of one rank, of a build without MPI.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "launch/session.h"
#include "parallel/error.h"

extern "C" {
volatile int scone_debugger_attached = 0;
}

namespace scone {
namespace {

void print(const std::string& text) {
  std::fflush(stdout);
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

Session::Session(int&, char**&) {}
Session::~Session() = default;

/// Each rank of a job of several would take itself for the only one.
std::string Session::problem() const {
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    const char* ranks = std::getenv(variable);
    if (ranks != nullptr && std::atoi(ranks) > 1)
      return fmt::format(
          "started as one of {} ranks ({}), but this scone was built without MPI and serves one: "
          "build it with -DSCONE_MPI=ON, or start one",
          ranks, variable);
  }
  return "";
}

std::string Session::mpi_library() const { return "not built in"; }
std::string Session::mpi_threads() const { return ""; }

void Session::check_ranks() const {
  if (const std::string found = problem(); !found.empty()) throw InputError(found);
}

std::unique_ptr<Communicator> Session::make_world() const { return make_self_communicator(); }

int Session::report(const std::string& message, int code) {
  print(fmt::format("scone: error: {}\n", message));
  return code;
}

void Session::wait_for_debugger(int rank) {
  if (rank != 0)
    throw InputError(fmt::format("--hang-rank {}: there is no such rank; expected 0 to 0", rank));
  print(
      fmt::format("rank 0 waits for a debugger: pid {}: gdb -p {}, then `set var "
                  "scone_debugger_attached = 1` and `continue`\n",
                  getpid(), getpid()));
  while (scone_debugger_attached == 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
}

void end_all_ranks(const std::string& message, int code) {
  print(fmt::format("scone: error: {}\n", message));
  std::_Exit(code);
}

}  // namespace scone
