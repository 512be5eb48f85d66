#include "launch/sweep/local_launcher.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <ctime>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "checkpoint/durable_file.h"
#include "launch/sweep/child_process.h"
#include "launch/sweep/sweep_folder.h"
#include "launch/sweep/sweep_status.h"
#include "parallel/error.h"
#include "trainer/stop_signal.h"

namespace scone {
namespace {

constexpr int kRequeue = 75;  // of a run that saved a checkpoint and wants to go on
constexpr std::chrono::seconds kReportEvery{60};

std::atomic<int> signals_received = 0;
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler sets it");

/// A terminal that goes may say so several times: a hangup is the first signal or none.
void count_signal(int signal) {
  if (signal != SIGHUP || signals_received == 0) ++signals_received;
}

/// From construction to destruction SIGINT, SIGTERM and SIGHUP are counted instead of ending this
/// process. No thread of it computes, so any may take them.
class CountedSignals {
 public:
  CountedSignals() {
    signals_received = 0;
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      struct sigaction action {};
      action.sa_handler = count_signal;
      action.sa_flags = SA_RESTART;
      sigaction(kSignals[i], &action, &before_[i]);
      if (kSignals[i] == SIGHUP && before_[i].sa_handler == SIG_IGN)  // started by nohup
        sigaction(kSignals[i], &before_[i], nullptr);
    }
  }
  ~CountedSignals() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }
  CountedSignals(const CountedSignals&) = delete;
  CountedSignals& operator=(const CountedSignals&) = delete;

 private:
  static constexpr std::array<int, 3> kSignals = {SIGINT, SIGTERM, SIGHUP};
  std::array<struct sigaction, 3> before_{};
};

/// A point on its way through its stages.
struct Progress {
  const SweepPoint* point = nullptr;
  std::vector<StageCommand> stages;
  int failures = 0;             // of the stage at hand
  std::int64_t saved_step = 0;  // at which its training left with 75
  std::optional<ChildProcess> child;
  const StageCommand* running = nullptr;
  bool failed = false;

  const StageCommand* next_stage() const {
    for (const StageCommand& stage : stages)
      if (!is_done(stage.stage, stage.result)) return &stage;
    return nullptr;
  }
};

class LocalRunner {
 public:
  LocalRunner(const SweepConfig& sweep, const std::vector<SweepPoint>& points, std::string program);
  LocalOutcome run();

 private:
  std::filesystem::path folder(const Progress& progress) const {
    return point_folder(sweep_.folder, progress.point->name);
  }
  void start(Progress& progress, const StageCommand& stage);
  void start_waiting();
  void stop();
  void ask_to_stop();
  /// Writes state.json, or warns: it is for who looks on.
  void note(const Progress& progress, const PointState& state) const;
  LocalOutcome run_all();
  /// Takes note of a child that has ended, and starts what follows.
  void ended(Progress& progress, int code);
  void report_finished(const Progress& progress) const;
  void report_running();
  std::size_t count_running() const {
    return static_cast<std::size_t>(
        std::count_if(all_.begin(), all_.end(),
                      [](const Progress& progress) { return progress.child.has_value(); }));
  }

  const SweepConfig& sweep_;
  const LocalLauncher& local_;
  std::string program_;
  std::vector<Progress> all_;
  int signals_seen_ = 0;
  std::chrono::steady_clock::time_point stopping_since_;
  std::chrono::steady_clock::time_point reported_ = std::chrono::steady_clock::now();
};

LocalRunner::LocalRunner(const SweepConfig& sweep, const std::vector<SweepPoint>& points,
                         std::string program)
    : sweep_(sweep), local_(std::get<LocalLauncher>(sweep.launcher)), program_(std::move(program)) {
  for (const SweepPoint& point : points) {
    Progress progress;
    progress.point = &point;
    progress.stages = stages_of(sweep, point);
    all_.push_back(std::move(progress));
  }
}

void LocalRunner::start(Progress& progress, const StageCommand& stage) {
  std::vector<std::string> command;
  if (local_.ranks > 1) {
    std::string mpirun = local_.mpirun;
    if (mpirun.empty()) {
      mpirun = "mpirun --bind-to none --oversubscribe --use-hwthread-cpus";
      if (::geteuid() == 0) mpirun += " --allow-run-as-root";
    }
    std::istringstream words(mpirun);
    for (std::string word; words >> word;) command.push_back(word);
    command.insert(command.end(), {"-np", std::to_string(local_.ranks)});
  }
  command.push_back(program_);
  command.insert(command.end(), stage.arguments.begin(), stage.arguments.end());
  const auto log = folder(progress) / "sweep.log";
  std::ofstream(log, std::ios::app) << fmt::format(
      "== {:%Y-%m-%d %H:%M:%S} {}, attempt {}: {}\n", fmt::localtime(std::time(nullptr)),
      name_of(stage.stage), progress.failures + 1, fmt::join(command, " "));
  remove_results_after(stage.stage, progress.stages);
  note(progress, {"running", name_of(stage.stage), progress.failures + 1, 0});
  progress.running = &stage;
  progress.child.emplace(
      command, std::vector<std::string>{fmt::format("OMP_NUM_THREADS={}", local_.threads)},
      ChildOutput{log, log});
  spdlog::info("{}: {}{}", progress.point->name, name_of(stage.stage),
               progress.failures > 0 ? fmt::format(", attempt {}", progress.failures + 1) : "");
}

void LocalRunner::start_waiting() {
  for (Progress& progress : all_) {
    if (count_running() >= static_cast<std::size_t>(local_.jobs)) return;
    if (progress.child || progress.failed) continue;
    if (const StageCommand* stage = progress.next_stage()) start(progress, *stage);
  }
}

void LocalRunner::stop() {
  const int signals = signals_received;
  if (signals <= signals_seen_) return;
  const auto now = std::chrono::steady_clock::now();
  if (std::exchange(signals_seen_, signals) == 0) {
    stopping_since_ = now;
    spdlog::warn("stopping: {} running; training saves first. A second signal, {} s later, kills",
                 count_running(), StopSignal::one_stop.count());
    ask_to_stop();
    return;
  }
  if (now - stopping_since_ < StopSignal::one_stop) return;  // the same, told twice
  for (Progress& progress : all_)
    if (progress.child) progress.child->kill();
}

void LocalRunner::ask_to_stop() {
  for (const Progress& progress : all_)  // mpirun would kill its ranks a second after a SIGTERM
    if (progress.child) progress.child->send(SIGUSR1);
}

void LocalRunner::note(const Progress& progress, const PointState& state) const {
  try {
    write_state(folder(progress), state);
  } catch (const std::exception& error) {
    spdlog::warn("{}", error.what());
  }
}

void LocalRunner::report_finished(const Progress& progress) const {
  const auto result = read_json_file(folder(progress) / "evaluation.json");
  const auto number = [&](const char* key) {  // null: it was none
    return result.contains(key) && result[key].is_number() ? result[key].get<double>() : NAN;
  };
  spdlog::info("{}: finished, loss {:.4f}, perplexity {:.3f}", progress.point->name, number("loss"),
               number("perplexity"));
}

void LocalRunner::ended(Progress& progress, int code) {
  const StageCommand& stage = *progress.running;
  progress.child.reset();
  progress.running = nullptr;
  const auto record = [&](const char* state) {
    note(progress, {state, name_of(stage.stage), progress.failures, code});
  };
  if (code == 0 && is_done(stage.stage, stage.result)) {
    progress.failures = 0;
    if (progress.next_stage() == nullptr) {
      record("finished");
      report_finished(progress);
    }
    return;
  }
  if (signals_seen_ > 0) {
    record("interrupted");
    return;
  }
  std::error_code error;
  if (code == kRequeue && stage.stage == Stage::train &&
      std::filesystem::exists(stage.result, error)) {
    // Such as at run.time_limit. One that comes no further would go on for ever.
    const std::int64_t step = read_json_file(stage.result).value("step", std::int64_t{0});
    if (std::exchange(progress.saved_step, step) < step) return;
  }
  ++progress.failures;
  progress.failed = progress.failures > sweep_.retries;
  record(progress.failed ? "failed" : "interrupted");
  spdlog::warn("{}: {} ended with exit code {}{}; its log is {}", progress.point->name,
               name_of(stage.stage), code,
               progress.failed
                   ? ", and was the last attempt"
                   : fmt::format(", attempt {} of {}", progress.failures, sweep_.retries + 1),
               (folder(progress) / "sweep.log").string());
}

void LocalRunner::report_running() {
  const auto now = std::chrono::steady_clock::now();
  if (now - reported_ < kReportEvery) return;
  reported_ = now;
  try {
    for (const PointStatus& status : read_status(sweep_.folder, read_sweep_record(sweep_.folder)))
      if (status.state == "running") spdlog::info("{}", describe(status));
  } catch (const std::exception& error) {
    spdlog::warn("{}", error.what());
  }
}

LocalOutcome LocalRunner::run() {
  const CountedSignals counted;
  try {
    return run_all();
  } catch (const std::exception& error) {
    // What is running is not to be lost for what went wrong here.
    if (signals_seen_ == 0) {
      if (count_running() > 0)
        spdlog::error("{}: {} running save first", error.what(), count_running());
      ask_to_stop();
      stopping_since_ = std::chrono::steady_clock::now();
      signals_seen_ = 1;  // as by a signal
    }
    while (count_running() > 0) {
      stop();
      for (Progress& progress : all_)
        if (progress.child && progress.child->poll()) progress.child.reset();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    throw;
  }
}

LocalOutcome LocalRunner::run_all() {
  while (true) {
    stop();
    if (signals_seen_ == 0) start_waiting();
    if (count_running() == 0) break;
    for (Progress& progress : all_) {
      if (!progress.child) continue;
      if (const auto code = progress.child->poll()) {
        ended(progress, *code);
        const StageCommand* next = progress.failed ? nullptr : progress.next_stage();
        if (next != nullptr && signals_seen_ == 0) start(progress, *next);
      }
    }
    report_running();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  LocalOutcome outcome;
  outcome.interrupted = signals_seen_ > 0;
  for (const Progress& progress : all_) {
    if (progress.failed)
      outcome.failed.push_back(progress.point->name);
    else if (progress.next_stage() == nullptr)
      outcome.finished.push_back(progress.point->name);
  }
  return outcome;
}

}  // namespace

void check_cores(SweepConfig& sweep, std::vector<SweepPoint>& points) {
  auto& local = std::get<LocalLauncher>(sweep.launcher);
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof(set), &set);
  const int cores = CPU_COUNT(&set);
  const std::int64_t processes = std::int64_t{local.jobs} * local.ranks;
  if (local.threads == 0)
    local.threads = static_cast<int>(std::max<std::int64_t>(1, cores / processes));
  if (processes * local.threads > cores && !local.oversubscribe)
    throw InputError(fmt::format(
        "{}: launcher.local: {} jobs x {} ranks x {} threads are {}, but there are {} cores; give "
        "fewer, or say oversubscribe: true",
        sweep.file.string(), local.jobs, local.ranks, local.threads, processes * local.threads,
        cores));
  for (SweepPoint& point : points) {
    const bool set_here = std::any_of(
        point.overrides.begin(), point.overrides.end(),
        [](const std::string& setting) { return setting.starts_with("compute.threads="); });
    if (set_here)
      throw InputError(fmt::format(
          "{}: point {}: compute.threads is set, but launcher.local.threads says it; remove it",
          sweep.file.string(), point.name));
    point.config.compute.threads = local.threads;
  }
}

LocalOutcome run_locally(const SweepConfig& sweep, const std::vector<SweepPoint>& points,
                         const std::string& program) {
  return LocalRunner(sweep, points, program).run();
}

}  // namespace scone
