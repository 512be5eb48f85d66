#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "launch/command.h"
#include "launch/doctor/findings.h"
#include "launch/doctor/rank_facts.h"
#include "launch/doctor/speed.h"
#include "launch/doctor/versions.h"
#include "launch/session.h"
#include "launch/slurm_job.h"
#include "parallel/watchdog.h"

namespace scone {
namespace {

constexpr std::chrono::seconds longest_wait{60};

double gigabytes(std::int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

std::string limit_text(std::int64_t limit, std::int64_t unit, const char* name) {
  return limit < 0 ? "unlimited" : fmt::format("{}{}", limit / unit, name);
}

std::string size_text(std::int64_t bytes) {
  return bytes >= 1 << 20 ? fmt::format("{} MiB", bytes >> 20) : fmt::format("{} KiB", bytes >> 10);
}

std::vector<RankFacts> gather_facts(const CommandContext& context) {
  const std::string own =
      nlohmann::json(gather_rank_facts(context.world.rank(), context.session.mpi_library()))
          .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::vector<RankFacts> ranks;
  for (const auto& bytes : context.world.all_gather(std::as_bytes(std::span(own)))) {
    const auto* const text = reinterpret_cast<const char*>(bytes.data());
    ranks.push_back(nlohmann::json::parse(text, text + bytes.size()).get<RankFacts>());
  }
  return ranks;
}

class Report {
 public:
  explicit Report(bool quiet) : quiet_(quiet) {}
  void line(const std::string& name, const std::string& text) const {
    if (!quiet_) fmt::print("{:<12} {}\n", name, text);
  }

 private:
  bool quiet_;
};

void print_host(const Report& report, const std::vector<RankFacts>& ranks, std::size_t begin,
                std::size_t end) {
  const RankFacts& first = ranks[begin];
  report.line("node",
              fmt::format("{}: {} of {} ranks; {}, {} CPUs{}", first.host, end - begin,
                          ranks.size(), first.processor, first.machine_cpus,
                          first.cpu_quota > 0
                              ? fmt::format(" ({:.1f} by the control group)", first.cpu_quota)
                              : ""));
  report.line("", fmt::format("{}", fmt::join(first.vector_extensions, " ")));
  report.line("", fmt::format("memory {:.1f} GB, {:.1f} available; transparent huge pages: {}; "
                              "/dev/shm {:.1f} GB free",
                              gigabytes(first.memory), gigabytes(first.memory_available),
                              first.huge_pages.empty() ? "unknown" : first.huge_pages,
                              gigabytes(first.shared_memory_free)));
  report.line("", fmt::format("a process may open {} files (ulimit -n) and lock {} (ulimit -l)",
                              limit_text(first.open_files, 1, ""),
                              limit_text(first.locked_memory, 1024, " KiB")));
  // Ranks that follow one another with the same CPUs and threads are one line.
  for (std::size_t from = begin; from < end;) {
    std::size_t to = from + 1;
    while (to < end && ranks[to].cpus == ranks[from].cpus &&
           ranks[to].threads == ranks[from].threads)
      ++to;
    const std::string which =
        to - from == 1 ? fmt::format("rank {}", ranks[from].rank)
                       : fmt::format("ranks {}-{}, each", ranks[from].rank, ranks[to - 1].rank);
    report.line("", fmt::format("{}: {} {}, CPUs {}", which, ranks[from].threads,
                                ranks[from].threads == 1 ? "thread" : "threads",
                                ranges_of(ranks[from].cpus)));
    from = to;
  }
}

/// By host, and then by rank.
void print_hosts(const Report& report, std::vector<RankFacts> ranks) {
  std::stable_sort(ranks.begin(), ranks.end(),
                   [](const RankFacts& a, const RankFacts& b) { return a.host < b.host; });
  for (std::size_t begin = 0; begin < ranks.size();) {
    std::size_t end = begin + 1;
    while (end < ranks.size() && ranks[end].host == ranks[begin].host) ++end;
    print_host(report, ranks, begin, end);
    begin = end;
  }
}

void print_speeds(const Report& report, const Diagnosis& diagnosis) {
  for (const AllReduceSpeed& speed : diagnosis.all_reduce)
    report.line("all-reduce", fmt::format("{:>7}: {:.3f} ms, {:.3f} GB/s", size_text(speed.bytes),
                                          1e3 * speed.seconds, speed.gigabytes_per_second()));
  if (diagnosis.all_reduce.empty()) report.line("all-reduce", "one rank: nothing to reduce");
  const DiskSpeed& disk = diagnosis.disk;
  report.line("disk",
              disk.error.empty()
                  ? fmt::format("{}: written with fsync at {:.0f} MB/s, read at {:.0f} MB/s; "
                                "{:.1f} of {:.1f} GB free",
                                diagnosis.folder, disk.write_speed(), disk.read_speed(),
                                gigabytes(disk.free), gigabytes(disk.capacity))
                  : fmt::format("{}: {}", diagnosis.folder, disk.error));
  const auto [least, most] = std::minmax_element(diagnosis.clocks.begin(), diagnosis.clocks.end());
  if (diagnosis.ranks.size() > 1)
    report.line("clocks", fmt::format("within {:.3f} ms of one another", 1e3 * (*most - *least)));
}

void print_findings(const Report& report, const std::vector<Finding>& findings) {
  if (findings.empty()) {
    report.line("result", "nothing looks wrong");
    return;
  }
  report.line("what looks wrong", "");
  for (const Finding& finding : findings)
    report.line(finding.serious ? "  WRONG" : "  warning",
                fmt::format("{}\n{:<12} -> {}", finding.what, "", finding.advice));
}

nlohmann::json json_of(const Diagnosis& diagnosis, const std::vector<Finding>& findings) {
  nlohmann::json json = {{"ranks", diagnosis.ranks}, {"clocks_seconds", diagnosis.clocks}};
  json["all_reduce"] = nlohmann::json::array();
  for (const AllReduceSpeed& speed : diagnosis.all_reduce)
    json["all_reduce"].push_back({{"bytes", speed.bytes},
                                  {"seconds", speed.seconds},
                                  {"rounds", speed.rounds},
                                  {"gigabytes_per_second", speed.gigabytes_per_second()}});
  const DiskSpeed& disk = diagnosis.disk;
  json["disk"] = {{"folder", diagnosis.folder}, {"error", disk.error}};
  if (disk.error.empty())
    json["disk"].update({{"bytes", disk.bytes},
                         {"write_megabytes_per_second", disk.write_speed()},
                         {"read_megabytes_per_second", disk.read_speed()},
                         {"capacity_bytes", disk.capacity},
                         {"free_bytes", disk.free}});
  json["findings"] = nlohmann::json::array();
  for (const Finding& finding : findings)
    json["findings"].push_back(
        {{"serious", finding.serious}, {"what", finding.what}, {"advice", finding.advice}});
  return json;
}

int run_doctor(const std::string& folder, CommandContext& context) {
  Diagnosis diagnosis;
  diagnosis.slurm = find_slurm_job();
  diagnosis.session_problem = context.session.problem();
  diagnosis.by_mpirun = context.session.launcher().starts_with("mpirun");
  diagnosis.folder = folder;
  diagnosis.cuda_problem = cuda_problem();
  // Several processes of a step that do not know of one another: one of them reports.
  const bool reports = context.is_root() &&
                       (context.world.size() > 1 || !diagnosis.slurm || diagnosis.slurm->rank == 0);
  const Report report(context.json || !reports);
  const Watchdog watchdog(longest_wait,
                          [](const std::string& message) { end_all_ranks(message, 1); });
  const auto versions = program_versions(context.session);
  for (const Version& version : versions)
    report.line(version.name, version.text + (version.about.empty() ? "" : "; " + version.about));
  const std::string slurm = reports ? slurm_version() : "";
  report.line("started by", context.session.launcher());
  report.line("Slurm", (slurm.empty() ? "not installed, or not configured here" : slurm) + "; " +
                           (diagnosis.slurm
                                ? describe(*diagnosis.slurm, std::chrono::system_clock::to_time_t(
                                                                 std::chrono::system_clock::now()))
                                : "not in a job"));
  const auto devices = reports ? cuda_devices() : std::vector<DeviceFacts>();
  diagnosis.cuda_devices = static_cast<int>(devices.size());
  for (const DeviceFacts& device : devices)
    report.line("GPU", fmt::format("{}, {:.1f} GB, {:.1f} free", device.name,
                                   gigabytes(device.memory), gigabytes(device.memory_free)));
  diagnosis.ranks = gather_facts(context);
  print_hosts(report, diagnosis.ranks);
  if (context.world.size() > 1) diagnosis.all_reduce = measure_all_reduce(context.world);
  diagnosis.disk = measure_disk(folder, context.world);
  diagnosis.clocks = measure_clocks(context.world);
  const auto findings = find_problems(diagnosis);
  print_speeds(report, diagnosis);
  print_findings(report, findings);
  const bool serious = std::any_of(findings.begin(), findings.end(),
                                   [](const Finding& finding) { return finding.serious; });
  if (reports) {
    nlohmann::json json = json_of(diagnosis, findings);
    for (const Version& version : versions)
      json["versions"][version.name] = {{"version", version.text}, {"about", version.about}};
    json["launcher"] = context.session.launcher();
    json["slurm"] = {{"version", slurm}, {"job", diagnosis.slurm ? diagnosis.slurm->id : ""}};
    json["devices"] = nlohmann::json::array();
    for (const DeviceFacts& device : devices)
      json["devices"].push_back({{"name", device.name},
                                 {"memory_bytes", device.memory},
                                 {"memory_free_bytes", device.memory_free}});
    context.print_result(json);
  }
  return serious ? 1 : 0;
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  auto folder = std::make_shared<std::string>(".");
  CLI::App* command = app.add_subcommand(
      "doctor",
      "Looks at the machine as a run would meet it: versions, how the ranks were started and where "
      "they run, an all-reduce and the disk for two seconds each, and what looks wrong. Alone, "
      "under mpirun or srun. Exit code 1: a run would fail, or be many times slower.");
  command->add_option("--folder", *folder, "Where the disk is measured: where runs will be")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  command->callback([folder, &action] {
    action = [folder](CommandContext& context) { return run_doctor(*folder, context); };
  });
}

}  // namespace scone
