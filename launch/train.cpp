#include <fmt/format.h>
#include <omp.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <charconv>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "data/memory_budget.h"
#include "launch/command.h"
#include "launch/run_lock.h"
#include "launch/session.h"
#include "launch/slurm_job.h"
#include "model/ops/ops.h"
#include "model/ops/profiled_backend.h"
#include "parallel/agreed_errors.h"
#include "parallel/error.h"
#include "parallel/watchdog.h"
#include "trainer/compute_device.h"
#include "trainer/matrix_peak.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

constexpr int kUnprofiledSteps = 2;  // in which memory is touched and kernels are made
constexpr int exit_requeue = 75;  // stopped by a signal or its time limit, with a checkpoint saved

struct Arguments {
  std::string file;
  std::vector<std::string> overrides;
  bool print_config = false;
  bool allow_changed_data = false;
  bool profile = false;
  std::string fault;  // KIND:RANK:STEP
};

/// What --inject-fault asks for: a rank that fails in a step, to see how a cluster takes it.
std::function<void(std::int64_t)> parse_fault(const std::string& text, const Communicator& world) {
  const auto first = text.find(':'), second = text.find(':', first + 1);
  const std::string kind = text.substr(0, first);
  int rank = -1;
  std::int64_t step = 0;
  if (second != std::string::npos) {
    const char* const end = text.data() + text.size();
    const char* const middle = text.data() + second;
    const auto of_rank = std::from_chars(text.data() + first + 1, middle, rank);
    const auto of_step = std::from_chars(middle + 1, end, step);
    if (of_rank.ptr != middle || of_step.ptr != end) rank = -1;
  }
  if ((kind != "throw" && kind != "kill" && kind != "hang") || rank < 0 || rank >= world.size() ||
      step < 1)
    throw InputError(fmt::format(
        "--inject-fault: expected KIND:RANK:STEP with throw, kill or hang, a rank below {} and a "
        "step from 1, found '{}'",
        world.size(), text));
  if (rank != world.rank()) return {};
  return [kind, step](std::int64_t now) {
    if (now != step) return;
    spdlog::warn("--inject-fault: {} in step {}", kind, step);
    if (kind == "throw")
      throw std::runtime_error(fmt::format("step {}: an injected fault (--inject-fault)", step));
    if (kind == "kill") std::raise(SIGKILL);
    while (true) std::this_thread::sleep_for(std::chrono::seconds(1));
  };
}

[[noreturn]] void cannot_write(const std::filesystem::path& path) {
  throw InputError(
      fmt::format("run.folder: {} cannot be written; choose another or make room", path.string()));
}

[[noreturn]] void cannot_write_file(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::is_directory(file, error)) cannot_write(file);
  throw InputError(fmt::format(
      "run.folder: {} is a folder, but the run writes a file of this name; move it away, or choose "
      "another run.folder",
      file.string()));
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

/// Writes config.yaml, and sends the log to log.txt too. Throws InputError where they cannot be
/// written.
void describe_run(const RunConfig& config) {
  const std::filesystem::path folder = config.run.folder;
  const auto log = folder / "log.txt", yaml = folder / "config.yaml";
  try {
    spdlog::default_logger()->sinks().push_back(
        std::make_shared<spdlog::sinks::basic_file_sink_mt>(log.string()));
  } catch (const spdlog::spdlog_ex&) {
    cannot_write_file(log);
  }
  const auto partial = folder / "config.yaml.new";
  std::ofstream file(partial, std::ios::trunc);
  file << to_yaml(config);
  file.close();
  if (!file) cannot_write_file(partial);
  std::error_code error;
  std::filesystem::rename(partial, yaml, error);
  if (error) cannot_write_file(yaml);
}

/// Where this rank's time went: a trace beside the run's other files, and rank 0's table.
void report(const OperationProfile& profile, const RunConfig& config, const ComputeDevice& device,
            const Communicator& world) {
  const auto file =
      std::filesystem::path(config.run.folder) / fmt::format("profile-rank{}.json", world.rank());
  profile.write_trace(file, world.rank());
  if (world.rank() != 0) return;
  const double peak = measure_matrix_peak(device.backend, config.compute.dtype);
  spdlog::info("profile of rank 0 after {} steps; trace: {}\n{}", kUnprofiledSteps, file.string(),
               profile.table(peak));
}

/// What the steps' collectives have moved, of all ranks together: a table in the log, and returned.
nlohmann::json report_traffic(Traffic traffic, Communicator& world) {
  traffic.sum_over(world);
  nlohmann::json rows = traffic_json(traffic);
  std::string table =
      fmt::format("collectives of the training steps, all ranks {:>10}{:>14}", "calls", "MB");
  for (const auto& row : rows)
    table += fmt::format("\n  {:<24} {:<15} {:>12} {:>13.3f}",
                         row.at("group").get_ref<const std::string&>(),
                         row.at("kind").get_ref<const std::string&>(),
                         row.at("calls").get<std::int64_t>(), row.at("bytes").get<double>() / 1e6);
  if (!rows.empty()) spdlog::info(table);
  return rows;
}

/// Says what Slurm gives the run, and warns of a time limit that comes too late.
void report_slurm_job(const SlurmJob& job, double time_limit) {
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  spdlog::info("{}", describe(job, now));
  if (job.end && time_limit > static_cast<double>(*job.end - now))
    spdlog::warn(
        "run.time_limit {} is more than the {} s that the Slurm job has left; set it lower, or "
        "have Slurm send a signal before the end (--signal)",
        time_limit, *job.end - now);
}

void warn_of_warm_up(const RunConfig& config) {
  if (config.optimizer.warmup_steps <= config.total_steps()) return;
  spdlog::warn(
      "optimizer.warmup_steps {} are more than the run's {} steps, so the learning rate ends "
      "before optimizer.peak_lr; set fewer",
      config.optimizer.warmup_steps, config.total_steps());
}

int run_train(const Arguments& arguments, CommandContext& context) {
  Communicator& world = context.world;
  RunConfig config = load_run_config(arguments.file, arguments.overrides, world.size());
  config.data.allow_changed = arguments.allow_changed_data;
  if (arguments.print_config) {
    if (context.is_root()) fmt::print("{}", to_yaml(config));
    return 0;
  }
  if (config.compute.threads > 0) omp_set_num_threads(config.compute.threads);
  const ComputeDevice device = open_compute_device(config, world);
  std::optional<RunLock> lock;  // outlives the trainer, whose end may write
  run_agreed(world, [&] {
    if (!context.is_root()) return;
    make_folder(config.run.folder);
    lock.emplace(config.run.folder);
  });
  std::function<void(std::int64_t)> fault;
  if (!arguments.fault.empty()) fault = parse_fault(arguments.fault, world);
  OperationProfile profile;
  ProfiledBackend profiled(device.backend, profile);
  std::optional<Watchdog> watchdog;  // outlives the trainer, whose end may wait for other ranks
  // May refuse, and then leaves the folder's files as they were.
  Trainer trainer(config, arguments.profile ? profiled : device.backend, *device.world);
  trainer.call_in_step([&, steps = 0](std::int64_t step) mutable {
    if (fault) fault(step);
    if (++steps == kUnprofiledSteps) profile.restart();
  });
  // Not before: one rank verifies the checkpoint's files while the others wait, however long.
  if (config.parallel.timeout > 0)
    watchdog.emplace(std::chrono::duration<double>(config.parallel.timeout),
                     [](const std::string& message) { end_all_ranks(message, 1); });
  run_agreed(world, [&] {
    if (context.is_root()) describe_run(trainer.config());
  });
  if (context.is_root()) {
    if (const auto job = find_slurm_job()) report_slurm_job(*job, config.run.time_limit);
    warn_of_warm_up(trainer.config());
    spdlog::info("computing on {}", device.description);
  }
  const TrainingResult result = trainer.run();
  profile.stop();
  nlohmann::json json = {{"step", result.step},
                         {"tokens", result.tokens},
                         {"seconds", result.seconds},
                         {"folder", config.run.folder},
                         {"stopped_early", result.stopped_early}};
  if (result.loss) json["loss"] = *result.loss;
  if (result.validation_loss) json["validation_loss"] = *result.validation_loss;
  spdlog::info("done: step {}, {} tokens, {}", result.step, result.tokens,
               format_duration(result.seconds));
  if (arguments.profile) report(profile, config, device, world);
  json["traffic"] = report_traffic(trainer.step_traffic(), world);
  // On the host. With several ranks their shared memory counts in each that has touched it.
  json["peak_memory_bytes"] = world.all_reduce_value(peak_memory_bytes(), ReduceOp::max);
  context.print_result(json);
  return result.stopped_early ? exit_requeue : 0;
}

}  // namespace

void add_train(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "train",
      "Train a SCONE model, or a plain baseline. Alone or under mpirun. Resumes by itself "
      "where run.folder holds a checkpoint. SIGTERM, SIGUSR1 and ctrl-C: save, then exit 75.");
  command->add_option("run", arguments->file, "Run configuration, YAML")->required();
  command->add_option("overrides", arguments->overrides, "key=value .. in place of the file's");
  command->add_flag("--print-config", arguments->print_config,
                    "Print the resolved configuration with every default, and end");
  command->add_flag("--allow-changed-data", arguments->allow_changed_data,
                    "Train although shards are missing, changed or new since they were listed, or "
                    "since the checkpoint: each is named in a warning");
  command->add_flag("--profile", arguments->profile,
                    "Time each operation: a table at the end, and a trace for chrome://tracing of "
                    "each rank in run.folder. Operations are waited for one by one");
  command->add_option(
      "--inject-fault", arguments->fault,
      "KIND:RANK:STEP: that rank fails in that step, to see how a cluster takes it; "
      "throw, kill or hang");
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_train(*arguments, context); };
  });
}

}  // namespace scone
