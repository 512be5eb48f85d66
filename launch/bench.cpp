#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "launch/bench_checkpoint.h"
#include "launch/bench_data.h"
#include "launch/bench_parallel.h"
#include "launch/command.h"
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

struct DataArguments {
  std::string data, text, tokenizer, peers, peers_script = "launch/tokenizer_peers.mjs";
  int rounds = 5;
};

int run_data(const DataArguments& arguments, CommandContext& context) {
  nlohmann::json result;
  if (!arguments.data.empty())
    result["reading"] = bench_data_reading(context, arguments.data, arguments.rounds);
  if (!arguments.text.empty())
    result["tokenizing"] =
        bench_data_tokenizing(context, arguments.text, arguments.tokenizer,
                              {arguments.peers, arguments.peers_script}, arguments.rounds);
  context.print_result(result);
  return 0;
}

void add_data(CLI::App& bench, Action& action) {
  auto arguments = std::make_shared<DataArguments>();
  CLI::App* data = bench.add_subcommand("data", "Reading batches and tokenizing");
  data->fallthrough();
  data->add_option("--data", arguments->data, "Folder of token shards: reading batches");
  CLI::Option* tokenizer =
      data->add_option("--tokenizer", arguments->tokenizer, "tokenizer.json or tokenizer.model");
  data->add_option("--text", arguments->text, "Text or JSONL: tokenizing its first 50 MB")
      ->needs(tokenizer);
  data->add_option("--peers", arguments->peers,
                   "Folder of launch/tokenizer_peers.sh: other libraries, side by side");
  data->add_option("--rounds", arguments->rounds, "Of each, in turns")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  data->add_option("--peers-script", arguments->peers_script, "What runs them")
      ->capture_default_str();
  data->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_data(*arguments, context); };
  });
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "Speed of the parts on this machine");
  bench->require_subcommand(1);
  add_bench_checkpoint(*bench, action);
  add_data(*bench, action);
  auto arguments = std::make_shared<ParallelArguments>();
  CLI::App* parallel = bench->add_subcommand(
      "parallel",
      "Collectives, memory of a rank on each grid, step time of layouts, and what sharing f-grams "
      "saves; under mpirun");
  parallel->fallthrough();
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
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  parallel->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_parallel(*arguments, context); };
  });
}

}  // namespace scone
