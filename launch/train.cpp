#include <fmt/format.h>
#include <omp.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
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

[[noreturn]] void cannot_write(const std::filesystem::path& folder) {
  throw InputError(fmt::format("run.folder: {} cannot be written; choose another or make room",
                               folder.string()));
}

/// Throws InputError where the folder cannot be made or written.
void make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const auto probe = folder / ".writable";
  std::ofstream file(probe, std::ios::trunc);
  file << "x" << std::flush;
  if (error || !file) cannot_write(folder);
  file.close();
  std::filesystem::remove(probe, error);
}

/// Writes config.yaml, and sends the log to log.txt too.
void describe_run(const RunConfig& config) {
  const std::filesystem::path folder = config.run.folder;
  const auto partial = folder / "config.yaml.new";
  std::ofstream yaml(partial, std::ios::trunc);
  yaml << to_yaml(config);
  yaml.close();
  if (!yaml) cannot_write(folder);
  std::filesystem::rename(partial, folder / "config.yaml");
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
  if (config.compute.threads > 0) omp_set_num_threads(config.compute.threads);
  if (context.is_root()) make_folder(config.run.folder);
  world.barrier();
  Trainer trainer(config, cpu_backend(),
                  world);  // may refuse, and then leaves the folder's files as they were
  if (context.is_root()) describe_run(trainer.config());
  const TrainingResult result = trainer.run();
  nlohmann::json json = {{"step", result.step},
                         {"tokens", result.tokens},
                         {"seconds", result.seconds},
                         {"folder", config.run.folder},
                         {"stopped_by_signal", result.stopped_by_signal}};
  if (result.loss) json["loss"] = *result.loss;
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
