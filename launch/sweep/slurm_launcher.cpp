#include "launch/sweep/slurm_launcher.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include "checkpoint/durable_file.h"
#include "launch/sweep/child_process.h"
#include "launch/sweep/sweep_folder.h"
#include "parallel/error.h"

namespace scone {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

/// An array job as slurm/jobs.json keeps it: the task numbers are those of the points.
struct JobRecord {
  std::string id, stage;
  std::map<std::string, std::string> points;  // task -> name
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(JobRecord, id, stage, points)

struct CommandResult {
  int code = 0;
  std::string out, error;
};

std::string read_text(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

/// Runs one of Slurm's commands to its end.
CommandResult call(const std::vector<std::string>& command,
                   const std::vector<std::string>& environment = {}) {
  std::string name = (fs::temp_directory_path() / "scone-sweep-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr)
    throw std::runtime_error(fmt::format("{}: no folder can be made there; set TMPDIR to another",
                                         fs::temp_directory_path().string()));
  const fs::path folder = name;
  const ChildOutput output{folder / "out", folder / "error"};
  CommandResult result;
  result.code = ChildProcess(command, environment, output).wait();
  result.out = read_text(output.out);
  result.error = read_text(output.error);
  fs::remove_all(folder);
  if (result.code == 127 && result.error.empty())
    result.error = command[0] + " is not in PATH; load Slurm, or use launcher.local";
  return result;
}

std::vector<JobRecord> read_jobs(const fs::path& folder) {
  const fs::path file = folder / "slurm" / "jobs.json";
  std::error_code error;
  if (!fs::exists(file, error)) return {};
  try {
    return read_json_file(file).get<std::vector<JobRecord>>();
  } catch (const Json::exception& exception) {
    throw InputError(
        fmt::format("{}: not what `scone sweep` writes: {}; remove it once no job of "
                    "the sweep is in the queue",
                    file.string(), exception.what()));
  }
}

/// The state of each task of these jobs that is in the queue, whoever submitted it:
/// "123_4" -> "PENDING".
std::map<std::string, std::string> ask_queue(const std::vector<JobRecord>& jobs) {
  std::map<std::string, std::string> states;
  std::vector<std::string> ids;
  for (const JobRecord& job : jobs) ids.push_back(job.id);
  if (ids.empty()) return states;
  const auto result = call({"squeue", "--noheader", "--array", "--format=%i %T",
                            fmt::format("--jobs={}", fmt::join(ids, ","))});
  if (result.code != 0) {
    // Of a single one that has ended long ago.
    if (result.error.find("Invalid job id") != std::string::npos) return states;
    throw std::runtime_error(fmt::format("squeue failed: {}", result.error));
  }
  std::istringstream lines(result.out);
  for (std::string task, state; lines >> task >> state;) states[task] = state;
  return states;
}

std::string quoted(const std::string& argument) {
  std::string text = "'";
  for (const char c : argument) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

/// 1,2,3,7 as "1-3,7".
std::string ranges(const std::vector<std::size_t>& tasks) {
  std::vector<std::string> parts;
  for (std::size_t i = 0; i < tasks.size();) {
    std::size_t last = i;
    while (last + 1 < tasks.size() && tasks[last + 1] == tasks[last] + 1) ++last;
    parts.push_back(last == i ? fmt::format("{}", tasks[i])
                              : fmt::format("{}-{}", tasks[i], tasks[last]));
    i = last + 1;
  }
  return fmt::format("{}", fmt::join(parts, ","));
}

class Submission {
 public:
  Submission(const SweepConfig& sweep, const std::vector<SweepPoint>& points, std::string program);
  std::vector<ArrayJob> run();

 private:
  std::vector<std::string> options() const;
  fs::path script() const;
  /// points: indices of them.
  void submit(Stage stage, const std::string& dependency, const std::vector<std::size_t>& points);
  void keep_record() const;
  [[noreturn]] void refused(Stage stage, const std::string& message);

  const SweepConfig& sweep_;
  const std::vector<SweepPoint>& points_;
  const SlurmLauncher& slurm_;
  std::string program_;
  fs::path folder_;
  std::vector<JobRecord> before_, submitted_;
  // Of each point: its number in every array, which stays, so that a task may wait for one of an
  // earlier submission; and the jobs that results are awaited from.
  std::vector<std::size_t> numbers_;
  std::vector<std::map<Stage, std::string>> awaited_;
};

Submission::Submission(const SweepConfig& sweep, const std::vector<SweepPoint>& points,
                       std::string program)
    : sweep_(sweep),
      points_(points),
      slurm_(std::get<SlurmLauncher>(sweep.launcher)),
      program_(std::move(program)),
      folder_(sweep.folder),
      before_(read_jobs(folder_)),
      awaited_(points.size()) {
  fs::create_directories(folder_ / "slurm");
  std::map<std::string, std::size_t> known;
  std::size_t last = 0;
  for (const JobRecord& job : before_) {
    for (const auto& [task, name] : job.points) {
      known[name] = std::stoul(task);
      last = std::max(last, known[name]);
    }
  }
  for (const SweepPoint& point : points) {
    const auto at = known.find(point.name);
    numbers_.push_back(at == known.end() ? ++last : at->second);
  }
}

fs::path Submission::script() const {
  const fs::path path = slurm_.script.empty() ? fs::path(program_).parent_path().parent_path() /
                                                    "launch" / "slurm" / "array.sbatch"
                                              : fs::path(slurm_.script);
  std::error_code error;
  if (!fs::is_regular_file(path, error))
    throw InputError(fmt::format(
        "{}: launcher.slurm.script: {} is not there; give the path of launch/slurm/array.sbatch",
        sweep_.file.string(), path.string()));
  return path;
}

std::vector<std::string> Submission::options() const {
  // What array.sbatch asks for by itself is said here, but for its time where the sweep has none.
  std::vector<std::string> options = {fmt::format("--nodes={}", slurm_.nodes),
                                      fmt::format("--ntasks={}", sweep_.ranks()),
                                      fmt::format("--ntasks-per-node={}", slurm_.ntasks_per_node),
                                      fmt::format("--cpus-per-task={}", slurm_.cpus_per_task)};
  const auto add = [&](const char* name, const std::string& value) {
    if (!value.empty()) options.push_back(fmt::format("--{}={}", name, value));
  };
  const auto count = [](int value) { return value > 0 ? std::to_string(value) : std::string(); };
  add("account", slurm_.account);
  add("partition", slurm_.partition);
  add("time", slurm_.time);
  add("gpus-per-node", count(slurm_.gpus_per_node));
  options.insert(options.end(), slurm_.options.begin(), slurm_.options.end());
  return options;
}

void Submission::refused(Stage stage, const std::string& message) {
  if (!submitted_.empty()) {
    std::vector<std::string> cancel = {"scancel"};
    for (const JobRecord& job : submitted_) cancel.push_back(job.id);
    const auto result = call(cancel);
    if (result.code != 0)
      spdlog::warn("scancel failed: {}; cancel {} by hand", result.error, fmt::join(cancel, " "));
    submitted_.clear();
    keep_record();
  }
  throw InputError(
      fmt::format("{}: launcher.slurm: sbatch refused the {} jobs, and nothing is submitted: {}",
                  sweep_.file.string(), name_of(stage), message));
}

void Submission::submit(Stage stage, const std::string& dependency,
                        const std::vector<std::size_t>& points) {
  JobRecord job{"", name_of(stage), {}};
  const std::string number = fmt::format("{:04}", before_.size() + submitted_.size() + 1);
  const fs::path commands = folder_ / "slurm" / fmt::format("{}-{}.commands", number, job.stage);
  std::vector<std::string> lines(*std::max_element(numbers_.begin(), numbers_.end()));
  std::vector<std::size_t> tasks;
  for (const std::size_t i : points) {
    tasks.push_back(numbers_[i]);
    job.points[std::to_string(numbers_[i])] = points_[i].name;
    for (const StageCommand& command : stages_of(sweep_, points_[i])) {
      std::vector<std::string> words;
      for (const std::string& argument : command.arguments) words.push_back(quoted(argument));
      if (command.stage == stage) lines[numbers_[i] - 1] = fmt::format("{}", fmt::join(words, " "));
    }
  }
  std::sort(tasks.begin(), tasks.end());
  replace_file(commands, fmt::format("{}\n", fmt::join(lines, "\n")));
  std::string array = ranges(tasks);
  if (slurm_.max_running > 0) array += fmt::format("%{}", slurm_.max_running);
  std::vector<std::string> sbatch = {"sbatch", "--parsable"};
  const auto chosen = options();
  sbatch.insert(sbatch.end(), chosen.begin(), chosen.end());
  sbatch.push_back("--array=" + array);
  sbatch.push_back(fmt::format("--job-name={}-{}", sweep_.name, job.stage));
  sbatch.push_back(
      fmt::format("--output={}", (folder_ / "slurm" / (job.stage + "-%A_%a.log")).string()));
  if (!dependency.empty())
    sbatch.insert(sbatch.end(), {"--dependency=aftercorr:" + dependency,
                                 "--kill-on-invalid-dep=yes"});  // else it would wait for ever
  const fs::path launch = fs::absolute(script()).parent_path().parent_path();
  const std::vector<std::string> environment = {
      "SCONE=" + program_, "SCONE_REPOSITORY=" + launch.parent_path().string()};
  const auto finish = [&](std::vector<std::string> command) {
    command.insert(command.end(), {script().string(), commands.string()});
    return call(command, environment);
  };
  if (submitted_.empty()) {  // all arrays have the same options: what is refused is refused here
    std::vector<std::string> test = sbatch;
    test.insert(test.begin() + 1, "--test-only");
    const auto tested = finish(test);
    if (tested.code != 0) refused(stage, tested.error);
  }
  const auto result = finish(sbatch);
  if (result.code != 0) refused(stage, result.error);
  job.id = result.out.substr(0, result.out.find(';'));  // without the cluster's name
  for (const std::size_t i : points) awaited_[i][stage] = job.id;
  submitted_.push_back(std::move(job));
  keep_record();
}

/// At once, so that a job in the queue is known whatever comes next.
void Submission::keep_record() const {
  std::vector<JobRecord> all = before_;
  all.insert(all.end(), submitted_.begin(), submitted_.end());
  replace_file(folder_ / "slurm" / "jobs.json", Json(all).dump(1) + "\n");
}

std::vector<ArrayJob> Submission::run() {
  // What is in the queue stays there, and what reads its results was submitted with it.
  std::map<std::pair<std::string, std::string>, std::string> in_queue;  // name, stage -> job
  const auto states = ask_queue(before_);
  for (const JobRecord& job : before_)
    for (const auto& [task, name] : job.points)
      if (states.contains(job.id + "_" + task)) in_queue[{name, job.stage}] = job.id;
  for (const Stage stage : {Stage::train, Stage::bake, Stage::evaluate, Stage::evaluate_baked}) {
    std::map<std::string, std::vector<std::size_t>> by_dependency;
    for (std::size_t i = 0; i < points_.size(); ++i) {
      const std::vector<StageCommand> stages = stages_of(sweep_, points_[i]);
      for (const StageCommand& command : stages) {
        if (command.stage != stage || is_done(stage, command.result)) continue;
        remove_results_after(stage, stages);
        if (const auto at = in_queue.find({points_[i].name, name_of(stage)});
            at != in_queue.end()) {
          awaited_[i][stage] = at->second;
          continue;
        }
        const std::string dependency = command.after ? awaited_[i][*command.after] : "";
        by_dependency[dependency].push_back(i);
      }
    }
    for (const auto& [dependency, points] : by_dependency) submit(stage, dependency, points);
  }
  std::vector<ArrayJob> jobs;
  for (const JobRecord& record : submitted_) {
    jobs.push_back({record.id, record.stage, {}});
    for (const auto& [_, name] : record.points) jobs.back().points.push_back(name);
  }
  return jobs;
}

}  // namespace

std::map<std::string, QueuedPoint> read_queue(const fs::path& folder) {
  std::map<std::string, QueuedPoint> queue;
  const auto jobs = read_jobs(folder);
  const auto states = ask_queue(jobs);
  for (const JobRecord& job : jobs) {  // later ones last: they are what a point is at
    for (const auto& [task, name] : job.points) {
      const auto at = states.find(job.id + "_" + task);
      const bool is_queued = at != states.end();
      const auto log = folder / "slurm" / fmt::format("{}-{}_{}.log", job.stage, job.id, task);
      QueuedPoint& point = queue[name];
      if (is_queued && (point.state != "running" && point.state != "queued"))
        point = {at->second == "RUNNING" ? "running" : "queued", job.stage, log};
      else if (!is_queued && point.state != "running" && point.state != "queued" &&
               (point.state.empty() || fs::exists(log)))
        point = {"failed", job.stage, log};
    }
  }
  return queue;
}

std::vector<ArrayJob> submit_to_slurm(const SweepConfig& sweep,
                                      const std::vector<SweepPoint>& points,
                                      const std::string& program) {
  return Submission(sweep, points, program).run();
}

}  // namespace scone
