#include <fmt/format.h>
#include <omp.h>
#include <sched.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "launch/command.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

constexpr int exit_requeue = 75;  // stopped by a signal with a checkpoint saved

struct Arguments {
  std::string file;
  std::vector<std::string> overrides;
  bool print_config = false;
};

/// Ranks of `world` on this rank's node, itself included.
int ranks_on_node(Communicator& world) {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  const auto names = world.all_gather(std::as_bytes(std::span(name)));
  const auto own = std::as_bytes(std::span(name));
  return static_cast<int>(std::count_if(names.begin(), names.end(), [&](const auto& other) {
    return std::equal(own.begin(), own.end(), other.begin(), other.end());
  }));
}

/// Threads for this rank: as configured, else the cores that a launcher bound it to, else its share
/// of the node's.
int choose_threads(const RunConfig& config, Communicator& world) {
  const int sharing = ranks_on_node(world);
  if (config.compute.threads > 0) return config.compute.threads;
  cpu_set_t bound;
  CPU_ZERO(&bound);
  sched_getaffinity(0, sizeof(bound), &bound);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int mine = CPU_COUNT(&bound);
  return std::max(1, mine < cores ? mine : cores / sharing);
}

/// Makes the run's folder with config.yaml, and sends the log to log.txt too. Throws InputError
/// where it cannot.
void prepare_folder(const RunConfig& config) {
  const std::filesystem::path folder = config.run.folder;
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::ofstream yaml(folder / "config.yaml", std::ios::trunc);
  yaml << to_yaml(config);
  yaml.close();
  if (error || !yaml)
    throw InputError(fmt::format("run.folder: {} cannot be written; choose another or make room",
                                 folder.string()));
  spdlog::default_logger()->sinks().push_back(
      std::make_shared<spdlog::sinks::basic_file_sink_mt>((folder / "log.txt").string()));
}

int run_train(const Arguments& arguments, CommandContext& context) {
  Communicator& world = context.world;
  const RunConfig config = load_run_config(arguments.file, arguments.overrides, world.size());
  if (arguments.print_config) {
    if (context.is_root()) fmt::print("{}", to_yaml(config));
    return 0;
  }
  omp_set_num_threads(choose_threads(config, world));
  if (context.is_root()) prepare_folder(config);
  world.barrier();
  Trainer trainer(config, cpu_backend(), world);
  const TrainingResult result = trainer.run();
  nlohmann::json json = {
      {"step", result.step},         {"tokens", result.tokens},
      {"loss", result.loss},         {"seconds", result.seconds},
      {"folder", config.run.folder}, {"stopped_by_signal", result.stopped_by_signal}};
  if (result.validation_loss) json["validation_loss"] = *result.validation_loss;
  spdlog::info("done: step {}, {} tokens, {}", result.step, result.tokens,
               format_duration(result.seconds));
  context.print_result(json);
  return result.stopped_by_signal ? exit_requeue : 0;
}

}  // namespace

void add_train(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "train",
      "Train a SCONE model, or a plain baseline. Alone or under mpirun. Resumes by itself "
      "where run.folder holds a checkpoint. SIGTERM and SIGUSR1: save, then exit 75.");
  command->add_option("run", arguments->file, "Run configuration, YAML")->required();
  command->add_option("overrides", arguments->overrides, "key=value .. in place of the file's");
  command->add_flag("--print-config", arguments->print_config,
                    "Print the resolved configuration with every default, and end");
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_train(*arguments, context); };
  });
}

}  // namespace scone
