#include "launch/bench_bake.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/bake_table.h"
#include "checkpoint/table_files.h"
#include "data/size_suffix.h"
#include "launch/bench_data.h"
#include "launch/inference_options.h"
#include "launch/option_checks.h"
#include "model/main_model.h"
#include "model/ops/ops.h"
#include "model/transformer.h"
#include "parallel/error.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

struct Arguments {
  std::string vocabulary, size = "50K", alone = "10K", device = "cpu", type = "bf16", peer,
                          folder = ".";
  std::int64_t width = 768, layers = 12, heads = 12, block_nodes = 32768;
  int rounds = 5;
};

/// A model with random weights.
struct RandomModel {
  RandomModel(const ModelConfig& config, Backend& backend)
      : main(main_parameter_specs(config), backend.device(), /*with_gradients=*/false),
        fgram(fgram_parameter_specs(config), backend.device(), /*with_gradients=*/false) {
    main.initialise(1, backend);
    fgram.initialise(1, backend);
    model = std::make_unique<FgramModel>(config, fgram, whole_token_table(main), backend, false);
  }
  ParameterSet main, fgram;
  std::unique_ptr<FgramModel> model;
};

ModelConfig config_of(const Arguments& arguments, const FgramVocabulary& vocabulary) {
  ModelConfig config;
  config.vocabulary_size = vocabulary.token_vocabulary_size();
  config.main = {.width = arguments.width,
                 .layers = 0,
                 .heads = arguments.heads,
                 .ffw = 4 * arguments.width,
                 .context = vocabulary.max_length()};
  config.fgram = config.main;
  config.fgram.layers = arguments.layers;
  return config;
}

/// The f-grams, each a chain of K nodes of its own: what a batch of padded sequences computes.
struct Chains {
  Chains(const FgramVocabulary& vocabulary, std::int64_t count) {
    const int most = vocabulary.max_length();
    for (std::int64_t id = 0; id < count; ++id) {
      const auto tokens = vocabulary.tokens(id);
      for (int i = 0; i < most; ++i) {
        const auto at = std::min(static_cast<std::size_t>(i), tokens.size() - 1);
        parent.push_back(i == 0 ? -1 : static_cast<std::int32_t>(token.size()) - 1);
        token.push_back(tokens[at]);
        depth.push_back(i);
      }
    }
  }
  std::vector<std::int32_t> token, parent, depth;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// F-grams a second that the peer's last line tells, a number.
double run_peer(const Arguments& arguments, const FgramVocabulary& vocabulary, std::int64_t count) {
  const std::string command =
      fmt::format("{} --width {} --layers {} --heads {} --length {} --vocabulary {} --count {}",
                  arguments.peer, arguments.width, arguments.layers, arguments.heads,
                  vocabulary.max_length(), vocabulary.token_vocabulary_size(), count);
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
  if (!pipe) throw InputError(fmt::format("--peer: cannot run {}", command));
  char line[256];
  std::string last;
  while (std::fgets(line, sizeof(line), pipe.get()) != nullptr) last = line;
  double rate = 0;
  if (std::sscanf(last.c_str(), "%lf", &rate) != 1 || !(rate > 0))
    throw InputError(
        fmt::format("--peer: {}: expected a rate on its last line, found '{}'", command, last));
  return rate;
}

int run_bench_bake(const Arguments& arguments, CommandContext& context) {
  if (context.world.size() > 1)
    throw InputError("bench bake: runs on one rank; OMP_NUM_THREADS gives it threads");
  const FgramVocabulary vocabulary(arguments.vocabulary,
                                   parse_size_option("--size", arguments.size));
  const std::int64_t alone =
      std::min(parse_size_option("--alone-size", arguments.alone), vocabulary.size());
  const ComputeDevice device = open_inference_device(arguments.device, context.world);
  const ModelConfig config = config_of(arguments, vocabulary);
  validate(config.fgram, "model.fgram");
  RandomModel random(config, device.backend);
  const TableLayout layout =
      make_table_layout(row_type_of(arguments.type), arguments.width, vocabulary.size(),
                        std::int64_t{32} << 30, vocabulary.fingerprint());
  const Chains chains(vocabulary, alone);
  const Tensor chain_rows =
      Tensor::zeros({static_cast<std::int64_t>(chains.token.size()), arguments.width}, DType::fp32,
                    device.backend.device());
  std::vector<double> baked, padded, peer;
  for (int round = 0; round < arguments.rounds; ++round) {
    const BenchFolder folder(arguments.folder);
    TableFiles::create(folder.path(), layout);
    auto start = Clock::now();
    bake_table(vocabulary, *random.model, device.backend, layout, folder.path(),
               arguments.block_nodes, context.world);
    baked.push_back(static_cast<double>(vocabulary.size()) / seconds_since(start));
    start = Clock::now();
    random.model->forward({chains.token, chains.parent, chains.depth}, chain_rows);
    device.backend.synchronize();
    padded.push_back(static_cast<double>(alone) / seconds_since(start));
    if (!arguments.peer.empty()) peer.push_back(run_peer(arguments, vocabulary, alone));
  }
  const double rate = median_of(baked), padded_rate = median_of(padded);
  if (!context.json) {
    fmt::print("width {}, {} layers, {} f-grams of up to {} tokens, medians of {}; f-grams/s\n",
               arguments.width, arguments.layers, vocabulary.size(), vocabulary.max_length(),
               arguments.rounds);
    fmt::print("{:<44} {:>12.0f}\n", fmt::format("bake, {} rows to disk", arguments.type), rate);
    fmt::print("{:<44} {:>12.0f} {:>8.2f}x\n", "each by itself, padded, no disk", padded_rate,
               rate / padded_rate);
  }
  nlohmann::json result = {{"fgrams", vocabulary.size()},
                           {"width", arguments.width},
                           {"layers", arguments.layers},
                           {"bake", rate},
                           {"padded", padded_rate}};
  if (!peer.empty()) {
    result["peer"] = median_of(peer);
    if (!context.json)
      fmt::print("{:<44} {:>12.0f} {:>8.2f}x\n", arguments.peer, median_of(peer),
                 rate / median_of(peer));
  }
  context.print_result(result);
  return 0;
}

}  // namespace

void add_bench_bake(CLI::App& bench, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = bench.add_subcommand(
      "bake", "F-grams a second of the bake, against each f-gram by itself padded to K");
  command->add_option("fgrams", arguments->vocabulary, "F-gram vocabulary")->required();
  command->add_option("--size", arguments->size, "Bake its first S")->capture_default_str();
  command->add_option("--alone-size", arguments->alone, "Of them, run so many by themselves")
      ->capture_default_str();
  command->add_option("--width", arguments->width, "Of the model")->capture_default_str();
  command->add_option("--layers", arguments->layers, "Of the f-gram model")->capture_default_str();
  command->add_option("--heads", arguments->heads, "Of the model")->capture_default_str();
  command->add_option("--block-nodes", arguments->block_nodes, "As of scone bake")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--dtype", arguments->type, "Of the rows")->capture_default_str();
  command->add_option("--peer", arguments->peer,
                      "Command that takes --width, --layers, .. and prints its f-grams a second");
  command->add_option("--folder", arguments->folder, "Where the tables are written")
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "Of each, in turns")
      ->check(at_least(1))
      ->capture_default_str();
  add_device_option(*command, arguments->device);
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_bench_bake(*arguments, context); };
  });
}

}  // namespace scone
