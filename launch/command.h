#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "parallel/communicator.h"

namespace scone {

class Session;

/// What every subcommand gets: the ranks it runs on, and where its result goes.
struct CommandContext {
  Communicator& world;
  const Session& session;
  bool json = false;        // --json: one JSON object on stdout as the last line, from rank 0
  std::string result_file;  // --result: the same object as a file, whole or not at all; empty: none
  bool is_root() const { return world.rank() == 0; }
  /// Before any work: throws InputError where the result could not be written to `result_file`.
  void check_result_file() const;
  /// Prints `result` as the last line where --json was given, and writes it where --result was
  /// (rank 0 only). Throws InputError where it cannot be written.
  void print_result(const nlohmann::json& result) const;
};

/// Each add_* declares one subcommand with its options and sets `action` when it is chosen; main
/// then calls it with the context. The action returns the exit code; bad input is thrown as
/// InputError.
using Action = std::function<int(CommandContext&)>;
void add_tokenize(CLI::App& app, Action& action);
void add_fgrams(CLI::App& app, Action& action);
void add_train(CLI::App& app, Action& action);
void add_eval(CLI::App& app, Action& action);
void add_bake(CLI::App& app, Action& action);
void add_bundle(CLI::App& app, Action& action);
void add_generate(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_export(CLI::App& app, Action& action);
void add_import(CLI::App& app, Action& action);
void add_sweep(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);

}  // namespace scone
