
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "launch/bench_bake.h"
#include "launch/bench_checkpoint.h"
#include "launch/bench_data.h"
#include "launch/bench_decode.h"
#include "launch/bench_parallel.h"
#include "launch/bench_step.h"
#include "launch/bench_table.h"
#include "launch/command.h"
#include "launch/option_checks.h"
#include "parallel/error.h"

namespace scone {
namespace {

struct ParallelArguments {
  std::string file;
  std::vector<std::string> overrides;
  std::vector<std::string> parts = {"collectives", "memory", "layouts", "sharing"};
  std::vector<std::string> batch_tokens = {"64Ki", "512Ki"};
  int rounds = 5;
};

int run_parallel(const ParallelArguments& arguments, CommandContext& context) {
  const RunConfig config =
      load_run_config(arguments.file, arguments.overrides, context.world.size());
  const auto wanted = [&](const char* part) {
    return std::find(arguments.parts.begin(), arguments.parts.end(), part) != arguments.parts.end();
  };
  nlohmann::json result = {{"ranks", context.world.size()}};
  if (wanted("collectives")) result["collectives"] = bench_collectives(context);
  if (wanted("memory")) result["memory"] = bench_memory(config, context);
  if (wanted("layouts")) result["layouts"] = bench_layouts(config, arguments.rounds, context);
  if (wanted("sharing")) {
    if (config.model.fgram.layers == 0)
      throw InputError("bench parallel: sharing needs a run with an f-gram model");
    std::vector<RunConfig> runs;
    for (const std::string& tokens : arguments.batch_tokens) {
      std::vector<std::string> overrides = arguments.overrides;
      overrides.push_back("trainer.batch_tokens=" + tokens);
      runs.push_back(load_run_config(arguments.file, overrides, context.world.size()));
    }
    result["sharing"] = bench_sharing(runs, arguments.rounds, context);
  }
  context.print_result(result);
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Speed of the parts on this machine");
  bench->require_subcommand(1);
  add_bench_bake(*bench, action);
  add_bench_checkpoint(*bench, action);
  add_bench_step(*bench, action);
  add_bench_table(*bench, action);
  add_bench_data(*bench, action);
  add_bench_decode(*bench, action);
  auto arguments = std::make_shared<ParallelArguments>();
  CLI::App* parallel = bench->add_subcommand(
      "parallel",
      "Collectives, memory of a rank on each grid, step time of layouts, and what sharing f-grams "
      "saves; under mpirun");
  parallel->add_option("run", arguments->file, "Run configuration, YAML")->required();
  parallel->add_option("overrides", arguments->overrides, "key=value .. in place of the file's");
  parallel->add_option("--parts", arguments->parts, "Which of them")
      ->check(CLI::IsMember({"collectives", "memory", "layouts", "sharing"}))
      ->delimiter(',')
      ->capture_default_str();
  parallel
      ->add_option("--batch-tokens", arguments->batch_tokens, "Batches that sharing is shown for")
      ->delimiter(',')
      ->capture_default_str();
  parallel->add_option("--rounds", arguments->rounds, "Steps of each, in turns")
      ->check(at_least(1))
      ->capture_default_str();
  parallel->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_parallel(*arguments, context); };
  });
}

}  // namespace scone
