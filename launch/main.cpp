// scone: one program, one subcommand a step. Starts MPI (which works without mpirun too), parses
// the command line, runs the subcommand on all ranks, and is the one place where an error ends them
// all.
#include <fmt/format.h>
#include <mpi.h>
#include <omp.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "launch/command.h"
#include "launch/threads.h"
#include "parallel/error.h"

namespace {

constexpr int exit_failed = 1;
constexpr int exit_bad_input = 2;

/// MPI for the life of the program.
class MpiSession {
 public:
  MpiSession(int& argc, char**& argv) {
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm_dup(MPI_COMM_WORLD, &errors_);
  }
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  ~MpiSession() {
    MPI_Comm_free(&errors_);
    MPI_Finalize();
  }

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Reports an error of this rank and returns the exit code, or ends all ranks at once. Where all
  /// ranks fail within a moment (a configuration that every rank reads), each distinct message is
  /// printed once and all leave in order; else the others are at work or waiting for this rank, so
  /// it prints its message and aborts them.
  int report(const std::string& message, int code) {
    if (size_ > 1 && !all_failed()) {
      print(fmt::format("scone: error: [rank {} of {}, {}]: {}\n", rank_, size_, host(), message));
      // Time for mpirun to forward the message before it tells of the abort.
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      MPI_Abort(MPI_COMM_WORLD, code);
    }
    std::vector<std::uint64_t> hashes(static_cast<std::size_t>(size_));
    const std::uint64_t own = std::hash<std::string>{}(message);
    MPI_Allgather(&own, 1, MPI_UINT64_T, hashes.data(), 1, MPI_UINT64_T, errors_);
    const bool one_message = std::count(hashes.begin(), hashes.end(), own) == size_;
    const auto first = std::find(hashes.begin(), hashes.end(), own) - hashes.begin();
    if (first == rank_)
      print(one_message ? fmt::format("scone: error: {}\n", message)
                        : fmt::format("scone: error: [rank {} of {}, {}]: {}\n", rank_, size_,
                                      host(), message));
    int agreed = code;
    MPI_Allreduce(&code, &agreed, 1, MPI_INT, MPI_MAX, errors_);
    return agreed;
  }

 private:
  /// Whether every rank comes here within half a second.
  bool all_failed() {
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

  static std::string host() {
    std::array<char, 256> name{};
    gethostname(name.data(), name.size() - 1);
    return name.data();
  }

  static void print(const std::string& text) {
    std::fflush(stdout);
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  }

  int rank_ = 0, size_ = 1;
  MPI_Comm errors_ = MPI_COMM_NULL;  // used by report() alone
};

/// Log lines go to stderr, so that stdout holds results alone.
void set_up_log(int rank) {
  auto logger = spdlog::stderr_color_mt("scone");
  logger->set_pattern(rank == 0 ? "%H:%M:%S %^%v%$"
                                : fmt::format("%H:%M:%S [rank {}] %^%v%$", rank));
  logger->set_level(rank == 0 ? spdlog::level::info : spdlog::level::warn);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(logger);
}

void add_commands(CLI::App& app, scone::Action& action) {
  app.require_subcommand(1);
  app.set_version_flag("--version", "scone 0.1.0");
  scone::add_tokenize(app, action);
  scone::add_fgrams(app, action);
  scone::add_train(app, action);
  scone::add_eval(app, action);
  scone::add_bake(app, action);
  scone::add_generate(app, action);
  scone::add_inspect(app, action);
  scone::add_export(app, action);
  scone::add_import(app, action);
}

int run(int argc, char** argv, MpiSession& session) {
  set_up_log(session.rank());
  CLI::App app("Distributed training of SCONE language models", "scone");
  scone::Action action;
  bool json = false;
  add_commands(app, action);
  for (CLI::App* command : app.get_subcommands({}))
    command->add_flag("--json", json, "Print the result as one JSON object, the last line");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Help and errors of use are the same on all ranks.
    if (session.rank() == 0) app.exit(error);
    return error.get_exit_code() == 0 ? 0 : exit_bad_input;
  }
  // Outlives the handlers: freeing a communicator may wait for ranks that are busy elsewhere.
  const auto world =
      session.size() > 1 ? scone::make_mpi_communicator() : scone::make_self_communicator();
  try {
    scone::CommandContext context{*world, json};
    omp_set_num_threads(scone::default_threads(*world));
    const std::int64_t code = action(context);
    return static_cast<int>(world->all_reduce_value(code, scone::ReduceOp::max));
  } catch (const scone::InputError& error) {
    return session.report(error.what(), exit_bad_input);
  } catch (const std::bad_alloc&) {
    return session.report("out of memory", exit_failed);
  } catch (const std::exception& error) {
    return session.report(error.what(), exit_failed);
  }
}

}  // namespace

int main(int argc, char** argv) {
  MpiSession session(argc, argv);
  return run(argc, argv, session);
}
