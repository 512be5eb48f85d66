#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "launch/command.h"
#include "launch/run_lock.h"
#include "launch/sweep/local_launcher.h"
#include "launch/sweep/slurm_launcher.h"
#include "launch/sweep/sweep_config.h"
#include "launch/sweep/sweep_folder.h"
#include "launch/sweep/sweep_page.h"
#include "launch/sweep/sweep_plan.h"
#include "launch/sweep/sweep_points.h"
#include "launch/sweep/sweep_results.h"
#include "launch/sweep/sweep_status.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr int exit_failed = 1;
constexpr int exit_requeue = 75;

/// The sweep starts mpirun and sbatch itself, which is not to be done from within a job of
/// mpirun's.
void require_alone(const CommandContext& context) {
  if (context.world.size() > 1 || std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr ||
      std::getenv("PMI_SIZE") != nullptr)
    throw InputError(
        "scone sweep starts mpirun itself; start it without (launcher.local.ranks in the sweep's "
        "file says how many ranks a run has)");
}

/// Of this sweep's points, and of those that an earlier form of it had in its folder.
SweepResults earlier_results(const SweepConfig& sweep, const std::vector<SweepPoint>& points) {
  SweepRecord record = record_of(sweep, points);
  if (std::filesystem::exists(std::filesystem::path(sweep.folder) / "sweep.json")) {
    const std::size_t own = record.points.size();
    for (RecordedPoint& point : read_sweep_record(sweep.folder).points)
      if (std::none_of(record.points.begin(),
                       record.points.begin() + static_cast<std::ptrdiff_t>(own),
                       [&](const RecordedPoint& other) { return other.name == point.name; }))
        record.points.push_back(std::move(point));
  }
  return read_results(sweep.folder, std::move(record));
}

int run_slurm(const SweepConfig& sweep, const std::vector<SweepPoint>& points,
              const std::string& program, CommandContext& context) {
  const auto jobs = submit_to_slurm(sweep, points, program);
  nlohmann::json list = nlohmann::json::array();
  for (const ArrayJob& job : jobs) {
    spdlog::info("submitted {}: {} as job {}", job.stage, job.points.size(), job.id);
    list.push_back({{"id", job.id}, {"stage", job.stage}, {"points", job.points}});
  }
  if (jobs.empty()) spdlog::info("nothing to submit: all is done, or in the queue");
  spdlog::info(
      "scone sweep status {} says how far it is; started again, the sweep submits what "
      "failed",
      sweep.folder);
  context.print_result({{"folder", sweep.folder}, {"points", points.size()}, {"jobs", list}});
  return 0;
}

int run_local(const SweepConfig& sweep, const std::vector<SweepPoint>& points,
              const std::string& program, CommandContext& context) {
  const LocalOutcome outcome = run_locally(sweep, points, program);
  context.print_result({{"folder", sweep.folder},
                        {"points", points.size()},
                        {"finished", outcome.finished},
                        {"failed", outcome.failed},
                        {"interrupted", outcome.interrupted}});
  if (outcome.interrupted) {
    spdlog::info("stopped; start it again to go on");
    return exit_requeue;
  }
  if (outcome.failed.empty()) {
    spdlog::info("all {} points are finished; scone sweep report {} makes the report",
                 points.size(), sweep.folder);
    return 0;
  }
  spdlog::error(
      "failed: {}; scone sweep status {} shows the end of their logs. Started again, "
      "the sweep tries them again",
      fmt::join(outcome.failed, ", "), sweep.folder);
  return exit_failed;
}

int run_sweep(const std::string& file, bool dry_run, CommandContext& context) {
  require_alone(context);
  SweepConfig sweep = load_sweep_config(file);
  std::vector<SweepPoint> points = expand_points(sweep);
  const bool is_local = std::holds_alternative<LocalLauncher>(sweep.launcher);
  if (is_local) check_cores(sweep, points);
  for (const SweepPoint& point : points)
    if (point.config.data.validation.empty() && sweep.evaluate.data.empty())
      throw InputError(
          fmt::format("{}: evaluate.data: point {} has no data.validation to be "
                      "evaluated on; give one of the two",
                      file, point.name));
  describe_points(points);
  check_owner(sweep);
  check_unchanged(sweep, points);
  const std::string plan = format_plan(sweep, points, earlier_results(sweep, points));
  if (!context.json) fmt::print("{}", plan);
  std::fflush(stdout);
  if (dry_run) {
    nlohmann::json names = nlohmann::json::array();
    for (const SweepPoint& point : points) names.push_back(point.name);
    context.print_result({{"folder", sweep.folder}, {"points", names}});
    return 0;
  }
  std::error_code error;
  std::filesystem::create_directories(sweep.folder, error);
  const RunLock lock(sweep.folder, std::chrono::seconds(0), "folder");
  if (const auto others = points_left_out(sweep, points); !others.empty())
    spdlog::warn("{}: holds points that the sweep has no more, which stay and are in no report: {}",
                 sweep.folder, fmt::join(others, ", "));
  write_folder(sweep, points);
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  return is_local ? run_local(sweep, points, program, context)
                  : run_slurm(sweep, points, program, context);
}

int run_status(const std::string& folder, bool watch, CommandContext& context) {
  const bool terminal = ::isatty(STDOUT_FILENO) != 0;
  bool known = false;  // the state of all points, at any look
  while (true) {
    const auto statuses = read_status(folder, read_sweep_record(folder));
    if (!context.json)
      fmt::print("{}{}", watch && terminal ? "\033[H\033[2J" : "", format_table(statuses));
    std::fflush(stdout);
    bool going_on = false, unknown = false;
    for (const PointStatus& status : statuses) {
      going_on |= status.state == "running" || status.state == "queued";
      unknown |= status.state == "unknown";
    }
    known = known || !unknown;
    if (watch && unknown && !known) return exit_failed;  // there is nobody to ask
    going_on |= unknown;                                 // Slurm is busy
    if (!watch || !going_on) {
      context.print_result({{"folder", folder}, {"points", to_json(statuses)}});
      return 0;
    }
    std::this_thread::sleep_for(std::chrono::seconds(terminal ? 2 : 30));
  }
}

int run_report(const std::string& name, CommandContext& context) {
  const std::filesystem::path folder = name;
  const SweepResults results = read_results(folder, read_sweep_record(folder));
  std::ifstream file(folder / "sweep.yaml", std::ios::binary);
  const std::string yaml{std::istreambuf_iterator<char>(file), {}};
  replace_file(folder / "results.csv", to_csv(results));
  const nlohmann::json json = to_json(results);
  replace_file(folder / "results.json", json.dump(1) + "\n");
  replace_file(folder / "report.html", make_page(results, yaml));
  if (!context.json)
    fmt::print("{}\n{}\n{}\n", (folder / "report.html").string(), (folder / "results.csv").string(),
               (folder / "results.json").string());
  context.print_result(json);
  return 0;
}

}  // namespace

void add_sweep(CLI::App& app, Action& action) {
  struct Arguments {
    std::string file, status_folder, report_folder;
    bool dry_run = false, watch = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* sweep = app.add_subcommand(
      "sweep",
      "Runs a grid of trainings, with their evaluations, through mpirun or Slurm. One that was "
      "ended goes on where it was. ctrl-C: running trainings save, then exit 75.");
  sweep->add_option("sweep", arguments->file, "The sweep's YAML file");
  sweep->add_flag("--dry-run", arguments->dry_run, "Check all points, print the plan, and end");
  CLI::App* status = sweep->add_subcommand("status", "How far each point of a sweep is");
  status->add_option("folder", arguments->status_folder, "Folder of the sweep")->required();
  status->add_flag("--watch", arguments->watch, "Again and again, until nothing runs");
  status->callback([arguments, &action] {
    action = [arguments](CommandContext& context) {
      return run_status(arguments->status_folder, arguments->watch, context);
    };
  });
  CLI::App* report = sweep->add_subcommand(
      "report", "Writes report.html, results.csv and results.json into the sweep's folder");
  report->add_option("folder", arguments->report_folder, "Folder of the sweep")->required();
  report->callback([arguments, &action] {
    action = [arguments](CommandContext& context) {
      return run_report(arguments->report_folder, context);
    };
  });
  sweep->callback([arguments, sweep, &action] {
    if (!sweep->get_subcommands().empty()) return;
    if (arguments->file.empty()) throw CLI::RequiredError("sweep: a YAML file, status or report");
    action = [arguments](CommandContext& context) {
      return run_sweep(arguments->file, arguments->dry_run, context);
    };
  });
}

}  // namespace scone
