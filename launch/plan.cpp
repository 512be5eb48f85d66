
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/size_suffix.h"
#include "launch/command.h"
#include "launch/plan/plan_report.h"
#include "model/fgram_model.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::size_t kShownGrids = 10;
constexpr int kMostSurveyedRanks = 64;  // each is a thread
constexpr int kMostRanks = 1 << 20;
constexpr double kMostNodesPerToken = 100;
constexpr int kUsualMaxLength = 5;  // of `scone fgrams`

struct Arguments {
  std::string file, device = "measured", fgrams, vocabulary_size;
  std::vector<std::string> overrides;
  int ranks = 0, gpus_per_node = 0, batches = 2;
  double nodes_per_token = -1;
};

/// What the run's data say, or the options in their place.
struct PlannedData {
  FgramLoad load;
  VocabularyBytes vocabulary;
};

bool all_exist(const std::vector<std::string>& paths) {
  return std::all_of(paths.begin(), paths.end(),
                     [](const std::string& path) { return std::filesystem::exists(path); });
}

void check(const Arguments& arguments) {
  const auto refuse = [](const char* option, const std::string& expected, auto found) {
    throw InputError(fmt::format("{}: expected {}, found {}", option, expected, found));
  };
  if (arguments.ranks < 1 || arguments.ranks > kMostRanks)
    refuse("--ranks", fmt::format("1 to {}", kMostRanks), arguments.ranks);
  if (arguments.gpus_per_node < 0) refuse("--gpus-per-node", "at least 1", arguments.gpus_per_node);
  if (arguments.batches < 1) refuse("--batches", "at least 1", arguments.batches);
  if (arguments.nodes_per_token != -1 &&
      !(arguments.nodes_per_token > 0 && arguments.nodes_per_token <= kMostNodesPerToken))
    refuse("--nodes-per-token", fmt::format("a number above 0 and at most {}", kMostNodesPerToken),
           arguments.nodes_per_token);
}

/// From the data that the run names.
PlannedData survey(const Arguments& arguments, RunConfig& config) {
  const RunData data = open_run_data(config);
  PlannedData planned;
  fgram_parameter_specs(config.model);  // refuses what a run refuses, such as too small chunks
  if (data.vocabulary) planned.vocabulary = vocabulary_bytes(*data.vocabulary);
  if (arguments.nodes_per_token > 0) {
    planned.load = estimate_fgrams(config, arguments.ranks, arguments.nodes_per_token);
  } else if (arguments.ranks <= kMostSurveyedRanks) {
    planned.load = survey_fgrams(config, data, arguments.ranks, arguments.batches);
  } else {  // the batches' tries do not depend on the ranks
    RunConfig alone = config;
    alone.parallel.main.tp = alone.parallel.fgram.tp = 1;
    planned.load = estimate_fgrams(
        config, arguments.ranks, survey_fgrams(alone, data, 1, arguments.batches).nodes_per_token);
  }
  return planned;
}

struct ReportedNodes {
  double per_token = 0;
  std::int64_t batch_tokens = 0;
};

/// What the report beside the vocabulary (`scone fgrams --report`) says of batches of about this
/// run's size; none where there is no report of as many f-grams.
std::optional<ReportedNodes> read_report(const RunConfig& config) {
  std::filesystem::path file = config.fgrams.vocabulary;
  file.replace_extension();
  file += "-report.json";
  std::ifstream in(file);
  if (!in) return std::nullopt;
  std::optional<ReportedNodes> nearest;
  const auto distance = [&](std::int64_t tokens) {
    return std::abs(
        std::log(static_cast<double>(tokens) / static_cast<double>(config.trainer.batch_tokens)));
  };
  try {
    const auto report = nlohmann::json::parse(in);
    if (config.fgrams.size > 0 && report.at("size") != config.fgrams.size) return std::nullopt;
    for (const auto& row : report.at("sharing")) {
      if (row.at("nodes_per_token").is_null()) continue;  // the corpus was smaller than the batch
      const auto tokens = row.at("batch_tokens").get<std::int64_t>();
      if (!nearest || distance(tokens) < distance(nearest->batch_tokens))
        nearest = ReportedNodes{row.at("nodes_per_token").get<double>(), tokens};
    }
  } catch (const nlohmann::json::exception& error) {
    throw InputError(
        fmt::format("{}: expected a report of `scone fgrams --report`, found {}; make "
                    "it again, or give --nodes-per-token",
                    file.string(), error.what()));
  }
  if (nearest)
    fmt::print("{}: {:.3f} nodes a token in batches of {} tokens (this run's have {})\n",
               file.string(), nearest->per_token, nearest->batch_tokens,
               config.trainer.batch_tokens);
  return nearest;
}

/// From the options and the vocabulary's report, where the data are not there.
PlannedData assume(const Arguments& arguments, RunConfig& config) {
  const bool has_fgrams = config.model.fgram.layers > 0;
  if (arguments.vocabulary_size.empty()) {
    const bool no_data = !all_exist(config.data.train);
    throw InputError(
        fmt::format("{}: {} is not there, so the data are not read and the number of tokens is not "
                    "known; give --vocabulary-size, or what is missing",
                    no_data ? "data.train" : "fgrams.vocabulary",
                    no_data ? config.data.train.front() : config.fgrams.vocabulary));
  }
  config.model.vocabulary_size = parse_size_option("--vocabulary-size", arguments.vocabulary_size);
  if (config.model.vocabulary_size < 1)
    throw InputError("--vocabulary-size: expected at least 1, found 0");
  PlannedData planned{estimate_fgrams(config, arguments.ranks, 0), {}};
  if (!has_fgrams) return planned;
  double nodes_per_token = arguments.nodes_per_token;
  if (nodes_per_token < 0) {
    const auto reported = read_report(config);
    if (!reported)
      throw InputError(fmt::format(
          "fgrams.vocabulary: {} or data.train is not there, nor a report of as many f-grams, so "
          "what a batch needs of them is not known; give --nodes-per-token (`scone fgrams "
          "--report` measures it)",
          config.fgrams.vocabulary));
    nodes_per_token = reported->per_token;
  }
  const std::int64_t fgrams = arguments.fgrams.empty()
                                  ? config.fgrams.size
                                  : parse_size_option("--fgrams", arguments.fgrams);
  if (fgrams < 1)
    throw InputError(
        fmt::format("fgrams.vocabulary: {} is not there and fgrams.size is 0; give --fgrams",
                    config.fgrams.vocabulary));
  config.model.fgram.context =
      config.fgrams.max_length > 0 ? config.fgrams.max_length : kUsualMaxLength;
  fgram_parameter_specs(config.model);  // as in survey
  planned.vocabulary = vocabulary_bytes(fgrams, config.model.vocabulary_size);
  planned.load = estimate_fgrams(config, arguments.ranks, nodes_per_token);
  return planned;
}

int run_plan(const Arguments& arguments, CommandContext& context) {
  check(arguments);
  RunConfig config =
      load_run_config(arguments.file, arguments.overrides, arguments.ranks, RunsOn::any_build);
  DeviceFigures device;
  const bool is_measured = arguments.device == "measured";
  if (!is_measured) device = device_figures(arguments.device, config.compute.dtype);
  if (!is_measured && config.compute.device == Device::cpu)
    throw InputError(
        fmt::format("--device {}: compute.device is cpu; give compute.device=cuda and the "
                    "compute.dtype (bf16), or --device measured",
                    arguments.device));
  const bool has_fgrams = config.model.fgram.layers > 0;
  const bool has_data = all_exist(config.data.train) &&
                        (!has_fgrams || std::filesystem::exists(config.fgrams.vocabulary));
  if (has_data && !(arguments.vocabulary_size.empty() && arguments.fgrams.empty()))
    throw InputError(
        "--vocabulary-size and --fgrams are for runs whose data are not there; leave them out");
  PlannedData data;
  if (context.is_root()) data = has_data ? survey(arguments, config) : assume(arguments, config);
  if (is_measured) {
    if (config.compute.device != Device::cpu)
      throw InputError(
          "--device measured measures processors, and compute.device is cuda; give h100 or a100");
    device = measure_device(arguments.ranks, config.compute.threads, config.compute.dtype,
                            context.world);
  }
  if (!context.is_root()) return 0;
  if (arguments.gpus_per_node > 0) device.ranks_per_node = arguments.gpus_per_node;
  const RunPlan plan = plan_run(config, arguments.ranks, data.load, data.vocabulary, device);
  const auto grids =
      search_grids(config, arguments.ranks, data.load.nodes_per_token, data.vocabulary, device);
  fmt::print("{}\n{}", describe_plan(plan, data.load, device, data.vocabulary),
             describe_grids(grids, kShownGrids, device));
  nlohmann::json json = to_json(plan, device, data.vocabulary);
  json["device"] = to_json(device);
  json["nodes_per_token"] = data.load.nodes_per_token;
  json["estimated"] = data.load.estimated;
  json["batches"] = data.load.steps.size();
  auto& rows = json["grids"] = nlohmann::json::array();
  for (const RunPlan& grid : grids) rows.push_back(grid_json(grid));
  context.print_result(json);
  return 0;
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "plan",
      "What a run will take: memory, FLOPs, traffic and step time of each rank, and the best grids "
      "for the ranks. Allocates nothing of the models' size.");
  command->add_option("run", arguments->file, "Run configuration, YAML")->required();
  command->add_option("overrides", arguments->overrides, "key=value .. in place of the file's");
  command->add_option("--ranks", arguments->ranks, "Ranks of the run")->required();
  command->add_option("--gpus-per-node", arguments->gpus_per_node,
                      "Ranks of a node (default: the device's usual node, or all on this machine)");
  command
      ->add_option("--device", arguments->device,
                   "h100 or a100, for runs with compute.device=cuda; or measured: this machine's "
                   "cores, shared by the ranks, measured now; under mpirun with its all-reduce")
      ->capture_default_str();
  command
      ->add_option("--batches", arguments->batches,
                   "Batches of the run's data whose f-grams are planned, where the data are there")
      ->capture_default_str();
  command->add_option("--nodes-per-token", arguments->nodes_per_token,
                      "Distinct trie nodes of a batch over its tokens, in place of planning "
                      "batches (`scone fgrams --report` measures it)");
  command->add_option("--vocabulary-size", arguments->vocabulary_size,
                      "Tokens, such as 50257, where data.train is not there");
  command->add_option("--fgrams", arguments->fgrams,
                      "F-grams, such as 1G, where fgrams.vocabulary is not there (default: "
                      "fgrams.size)");
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_plan(*arguments, context); };
  });
}

}  // namespace scone
