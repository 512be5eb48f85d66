#include "launch/doctor/findings.h"

#include <fmt/format.h>
#include <strings.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "trainer/built_with.h"

namespace scone {
namespace {

constexpr double slow_disk = 50;       // MB/s
constexpr double least_share = 0.05;   // of a disk, of memory
constexpr double most_clock_skew = 1;  // seconds
constexpr double slow_message = 0.01;  // seconds that an all-reduce of 1 KiB may take
constexpr std::int64_t least_open_files = 1024;
constexpr std::int64_t least_shared_memory = std::int64_t{16} << 20;  // of each rank
constexpr std::int64_t least_locked_memory = std::int64_t{64} << 20;

using Findings = std::vector<Finding>;
using RankGroup = std::vector<const RankFacts*>;

std::string names_of(const RankGroup& ranks) {
  std::vector<int> numbers;
  for (const RankFacts* rank : ranks) numbers.push_back(rank->rank);
  return fmt::format("{} {}", numbers.size() == 1 ? "rank" : "ranks", ranges_of(numbers));
}

std::map<std::string, RankGroup> by_host(const std::vector<RankFacts>& ranks) {
  std::map<std::string, RankGroup> hosts;
  for (const RankFacts& rank : ranks) hosts[rank.host].push_back(&rank);
  return hosts;
}

bool share_a_cpu(const std::vector<int>& a, const std::vector<int>& b) {
  std::vector<int> both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return !both.empty();
}

struct CpuGroup {
  RankGroup ranks;
  std::vector<int> cpus;  // of any of them, ascending
};

/// Ranks of a host that may run on the same CPUs, directly or by way of others, are one group.
std::vector<CpuGroup> cpu_groups(const RankGroup& of_host) {
  std::vector<CpuGroup> groups;
  for (const RankFacts* rank : of_host) {
    CpuGroup joined{{rank}, rank->cpus};
    std::vector<CpuGroup> others;
    for (CpuGroup& group : groups) {
      if (!share_a_cpu(group.cpus, rank->cpus)) {
        others.push_back(std::move(group));
        continue;
      }
      joined.ranks.insert(joined.ranks.begin(), group.ranks.begin(), group.ranks.end());
      std::vector<int> all;
      std::set_union(joined.cpus.begin(), joined.cpus.end(), group.cpus.begin(), group.cpus.end(),
                     std::back_inserter(all));
      joined.cpus = std::move(all);
    }
    others.push_back(std::move(joined));
    groups = std::move(others);
  }
  return groups;
}

int threads_of(const RankGroup& ranks) {
  return std::accumulate(ranks.begin(), ranks.end(), 0,
                         [](int sum, const RankFacts* rank) { return sum + rank->threads; });
}

/// Whether that value of OMP_PROC_BIND, in any case, binds threads.
bool binds_threads(const std::string& value) {
  return !value.empty() && strcasecmp(value.c_str(), "false") != 0;
}

void check_cpus(const std::string& host, const CpuGroup& group, Findings& findings) {
  const int threads = threads_of(group.ranks), cpus = static_cast<int>(group.cpus.size());
  const std::string where = fmt::format("{}: {}", host, names_of(group.ranks));
  if (threads > cpus && group.ranks.size() > 1)
    findings.push_back(
        {true,
         fmt::format("{} compute with {} threads together on the same {} CPUs ({})", where, threads,
                     cpus, ranges_of(group.cpus)),
         "bind no two ranks to the same CPUs (mpirun --bind-to none, or --map-by "
         "slot:PE=THREADS), start fewer ranks, or lower compute.threads or OMP_NUM_THREADS"});
  else if (threads > cpus)
    findings.push_back({true,
                        fmt::format("{} computes with {} threads on {} CPUs ({})", where, threads,
                                    cpus, ranges_of(group.cpus)),
                        "lower OMP_NUM_THREADS, or bind the rank to more CPUs (mpirun --bind-to "
                        "none; srun --cpus-per-task)"});
  const auto bound =
      std::find_if(group.ranks.begin(), group.ranks.end(),
                   [](const RankFacts* rank) { return binds_threads(rank->omp_proc_bind); });
  if (group.ranks.size() > 1 && bound != group.ranks.end())
    findings.push_back(
        {true,
         fmt::format("{} share CPUs {}, and OMP_PROC_BIND={} binds the threads of each to the "
                     "first of them",
                     where, ranges_of(group.cpus), (*bound)->omp_proc_bind),
         "unset OMP_PROC_BIND, or have the launcher bind each rank to CPUs of its own"});
}

void check_hosts(const Diagnosis& diagnosis, Findings& findings) {
  std::set<std::size_t> sizes;
  for (const auto& [host, ranks] : by_host(diagnosis.ranks)) {
    for (const CpuGroup& group : cpu_groups(ranks)) check_cpus(host, group, findings);
    sizes.insert(ranks.size());
    const RankFacts& first = *ranks.front();
    if (first.cpu_quota > 0 && threads_of(ranks) > std::ceil(first.cpu_quota))
      findings.push_back({false,
                          fmt::format("{}: {} threads, but the control group has {:.1f} CPUs of "
                                      "time",
                                      host, threads_of(ranks), first.cpu_quota),
                          "start fewer ranks or threads, or give the container more CPUs"});
    if (first.memory > 0 && first.memory_available >= 0 &&
        static_cast<double>(first.memory_available) <
            least_share * static_cast<double>(first.memory))
      findings.push_back({false,
                          fmt::format("{}: {:.1f} of {:.1f} GB of memory are available", host,
                                      static_cast<double>(first.memory_available) / 1e9,
                                      static_cast<double>(first.memory) / 1e9),
                          "see what else runs there (ps, top)"});
    const auto wanted = least_shared_memory * static_cast<std::int64_t>(ranks.size());
    if (ranks.size() > 1 && first.shared_memory_free >= 0 && first.shared_memory_free < wanted)
      findings.push_back(
          {false,
           fmt::format("{}: {:.0f} MB free in /dev/shm, by which its {} ranks talk", host,
                       static_cast<double>(first.shared_memory_free) / 1e6, ranks.size()),
           "make it larger (docker run --shm-size), or remove what is left in it"});
    if (first.open_files >= 0 && first.open_files < least_open_files)
      findings.push_back({false,
                          fmt::format("{}: a process may open {} files", host, first.open_files),
                          "raise it (ulimit -n): shards, checkpoints and connections are files"});
    if (first.infiniband && first.locked_memory >= 0 && first.locked_memory < least_locked_memory)
      findings.push_back({true,
                          fmt::format("{}: a process may lock {} KiB of memory, but InfiniBand "
                                      "locks its buffers",
                                      host, first.locked_memory / 1024),
                          "raise it (ulimit -l unlimited, for Slurm in slurmd's unit)"});
    if (first.nvidia_driver && !built_with_cuda())
      findings.push_back({false, host + ": an NVIDIA driver, but this scone is built without CUDA",
                          "install the CUDA toolkit and build again, if it is to use GPUs"});
  }
  if (sizes.size() > 1)
    findings.push_back(
        {false, fmt::format("the nodes have {} to {} ranks", *sizes.begin(), *sizes.rbegin()),
         "give each node as many: all wait for the slowest"});
}

bool is_count(const std::string& text) {
  int value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size() && value > 0;
}

void check_environment(const Diagnosis& diagnosis, Findings& findings) {
  std::set<std::pair<std::string, std::string>> odd;
  std::set<std::string> libraries;
  std::set<int> threads;
  for (const RankFacts& rank : diagnosis.ranks) {
    for (const auto& [name, value] : rank.thread_counts) {
      // OpenMP's may be a list, one number a level of nesting.
      const auto first = name == "OMP_NUM_THREADS" ? value.substr(0, value.find(',')) : value;
      if (!is_count(first)) odd.emplace(name, value);
    }
    libraries.insert(rank.mpi);
    threads.insert(rank.threads);
  }
  for (const auto& [name, value] : odd)
    findings.push_back({false, fmt::format("{}='{}' is no number of threads", name, value),
                        fmt::format("unset {}, or give it a number from 1", name)});
  if (libraries.size() > 1)
    findings.push_back(
        {true,
         fmt::format("the ranks run with different MPI libraries: {}", fmt::join(libraries, "; ")),
         "install the same on all nodes"});
  if (threads.size() > 1)
    findings.push_back(
        {false,
         fmt::format("ranks compute with {} to {} threads", *threads.begin(), *threads.rbegin()),
         "give all as many: they wait for the slowest"});
  if (diagnosis.by_mpirun && diagnosis.ranks.front().root)
    findings.push_back({false, "mpirun runs as root",
                        "use another user: an error of any program then cannot harm the system"});
}

void check_slurm(const Diagnosis& diagnosis, Findings& findings) {
  if (!diagnosis.session_problem.empty()) {
    const auto colon = diagnosis.session_problem.find(": ");
    findings.push_back({true, diagnosis.session_problem.substr(0, colon),
                        colon == std::string::npos ? "see docs/slurm.md"
                                                   : diagnosis.session_problem.substr(colon + 2)});
  } else if (const auto& job = diagnosis.slurm;
             job && !job->by_mpirun && job->tasks > 1 && diagnosis.ranks.size() == 1) {
    findings.push_back(
        {true, fmt::format("Slurm gives this job {} tasks, but this is the only rank", job->tasks),
         "start scone with `srun --mpi=pmix` or `mpirun -np $SLURM_NTASKS`"});
  }
}

void check_speed(const Diagnosis& diagnosis, Findings& findings) {
  const DiskSpeed& disk = diagnosis.disk;
  const std::string& folder = diagnosis.folder;
  if (!disk.error.empty()) {
    findings.push_back({true, fmt::format("{} cannot be written: {}", folder, disk.error),
                        "choose another folder (--folder) for runs, or make room"});
  } else {
    for (const auto& [what, speed] :
         {std::pair("written", disk.write_speed()), std::pair("read", disk.read_speed())})
      if (speed < slow_disk)
        findings.push_back(
            {false, fmt::format("{} is {} at {:.0f} MB/s", folder, what, speed),
             "keep runs and shards on a faster disk, or set checkpoint.async: true"});
    if (static_cast<double>(disk.free) < least_share * static_cast<double>(disk.capacity))
      findings.push_back({false,
                          fmt::format("{}: {:.1f} of {:.1f} GB are free", folder,
                                      static_cast<double>(disk.free) / 1e9,
                                      static_cast<double>(disk.capacity) / 1e9),
                          "make room: a checkpoint that does not fit is not saved"});
    if (!disk.blind.empty())
      findings.push_back(
          {true,
           fmt::format("ranks {} do not see rank 0's file in {}", ranges_of(disk.blind), folder),
           "use a folder that all nodes share: checkpoints need one"});
  }
  if (!diagnosis.all_reduce.empty() && diagnosis.all_reduce.front().seconds > slow_message)
    findings.push_back({false,
                        fmt::format("an all-reduce of 1 KiB takes {:.1f} ms",
                                    1e3 * diagnosis.all_reduce.front().seconds),
                        "look for other programs on the CPUs, and for a slow network (mpirun --mca "
                        "btl_base_verbose "
                        "30 says what is used)"});
  const auto furthest =
      std::max_element(diagnosis.clocks.begin(), diagnosis.clocks.end(),
                       [](double a, double b) { return std::abs(a) < std::abs(b); });
  if (furthest != diagnosis.clocks.end() && std::abs(*furthest) > most_clock_skew)
    findings.push_back(
        {false,
         fmt::format(
             "the clock of {} (rank {}) is {:.1f} s off rank 0's",
             diagnosis.ranks[static_cast<std::size_t>(furthest - diagnosis.clocks.begin())].host,
             furthest - diagnosis.clocks.begin(), *furthest),
         "set the nodes' clocks by NTP: logs and the files' times are compared"});
  if (!diagnosis.cuda_problem.empty())
    findings.push_back({false, "no GPU can be used: " + diagnosis.cuda_problem,
                        "use compute.device=cpu, or install the driver"});
  const auto on_first_host = by_host(diagnosis.ranks).at(diagnosis.ranks.front().host).size();
  if (diagnosis.cuda_devices > 0 &&
      on_first_host > static_cast<std::size_t>(diagnosis.cuda_devices))
    findings.push_back({false,
                        fmt::format("{} ranks on {} share {} GPUs", on_first_host,
                                    diagnosis.ranks.front().host, diagnosis.cuda_devices),
                        "start one rank a GPU; NCCL refuses more"});
}

}  // namespace

std::vector<Finding> find_problems(const Diagnosis& diagnosis) {
  Findings findings;
  check_slurm(diagnosis, findings);
  check_hosts(diagnosis, findings);
  check_environment(diagnosis, findings);
  check_speed(diagnosis, findings);
  std::stable_partition(findings.begin(), findings.end(),
                        [](const Finding& finding) { return finding.serious; });
  return findings;
}

}  // namespace scone
