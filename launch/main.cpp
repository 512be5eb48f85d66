// scone: one program, one subcommand a step. Starts MPI (which works without mpirun too), parses
// the command line, runs the subcommand on all ranks, and is the one place where an error ends them
// all.
#include <fmt/format.h>
#include <omp.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <csignal>
#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "launch/bus_error.h"
#include "launch/command.h"
#include "launch/session.h"
#include "launch/threads.h"
#include "parallel/agreed_errors.h"
#include "parallel/error.h"

namespace {

constexpr int exit_failed = 1;
constexpr int exit_bad_input = 2;

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
  app.set_version_flag("--version", "scone " SCONE_VERSION);
  scone::add_tokenize(app, action);
  scone::add_fgrams(app, action);
  scone::add_train(app, action);
  scone::add_eval(app, action);
  scone::add_bake(app, action);
  scone::add_bundle(app, action);
  scone::add_generate(app, action);
  scone::add_inspect(app, action);
  scone::add_bench(app, action);
  scone::add_export(app, action);
  scone::add_import(app, action);
  scone::add_sweep(app, action);
  scone::add_plan(app, action);
  scone::add_doctor(app, action);
}

/// Of a command line without the subcommand that it needs: what stands in its place, with those
/// that there are. Empty: nothing does.
std::string unknown_command(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  if (!chosen.empty()) return unknown_command(*chosen.front());
  const auto known = app.get_subcommands({});
  const auto rest = app.remaining();
  if (known.empty() || rest.empty() || app.get_require_subcommand_min() == 0) return {};
  std::vector<std::string> names;
  for (const CLI::App* command : known) names.push_back(command->get_name());
  return fmt::format("{}: unknown command '{}'; expected one of {}", app.get_name(), rest.front(),
                     fmt::join(names, ", "));
}

int run(int argc, char** argv, scone::Session& session) {
  set_up_log(session.rank());
  CLI::App app("Distributed training of SCONE language models", "scone");
  scone::Action action;
  bool json = false;
  std::string result_file;
  std::optional<int> hang_rank;
  add_commands(app, action);
  auto add_hang_rank = [&](CLI::App& to) {
    to.add_option("--hang-rank", hang_rank, "Rank N waits at the start for a debugger")
        ->type_name("N");
  };
  add_hang_rank(app);
  const auto add_common = [&](CLI::App& to) {
    to.add_flag("--json", json, "Print the result as one JSON object, the last line");
    to.add_option("--result", result_file,
                  "Also write that object to this file, which is there once all is done");
    add_hang_rank(to);
  };
  for (CLI::App* command : app.get_subcommands({})) {
    add_common(*command);
    for (CLI::App* part : command->get_subcommands({})) add_common(*part);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& error) {
    const std::string unknown = unknown_command(app);
    if (session.rank() == 0 && unknown.empty()) app.exit(error);
    if (session.rank() == 0 && !unknown.empty()) fmt::print(stderr, "{}\n", unknown);
    return exit_bad_input;
  } catch (const CLI::ParseError& error) {
    // Help and errors of use are the same on all ranks.
    if (session.rank() == 0) app.exit(error);
    return error.get_exit_code() == 0 ? 0 : exit_bad_input;
  }
  // Outlives the handlers: freeing a communicator may wait for ranks that are busy elsewhere.
  const auto world = session.make_world();
  try {
    if (!app.got_subcommand("doctor")) session.check_ranks();  // which says what is wrong itself
    if (hang_rank) session.wait_for_debugger(*hang_rank);
    scone::CommandContext context{*world, session, json, result_file};
    scone::run_agreed(*world, [&] {
      if (context.is_root()) context.check_result_file();
    });
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
  std::signal(SIGXFSZ,
              SIG_IGN);  // a file beyond the limit is an error of writing it, as a full disk
  scone::Session session(argc, argv);
  scone::tell_of_bus_errors(
      session.size() > 1
          ? fmt::format("scone: error: [rank {} of {}]: ", session.rank(), session.size())
          : "scone: error: ");
  return run(argc, argv, session);
}
