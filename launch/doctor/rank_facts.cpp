#include "launch/doctor/rank_facts.h"

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

namespace scone {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

/// The value of the first line "KEY : VALUE".
std::string value_of(const fs::path& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const auto colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) continue;
    const auto begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

/// Of /proc/meminfo, in bytes.
std::int64_t memory_of(const char* key) {
  std::istringstream value(value_of("/proc/meminfo", key));
  std::int64_t kibibytes = -1;
  return value >> kibibytes ? kibibytes * 1024 : -1;
}

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  constexpr int most = 1 << 16;
  cpu_set_t* const set = CPU_ALLOC(most);
  const std::size_t size = CPU_ALLOC_SIZE(most);
  if (sched_getaffinity(0, size, set) == 0)
    for (int cpu = 0; cpu < most; ++cpu)
      if (CPU_ISSET_S(static_cast<std::size_t>(cpu), size, set)) cpus.push_back(cpu);
  CPU_FREE(set);
  return cpus;
}

std::int64_t limit_of(__rlimit_resource resource) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return static_cast<std::int64_t>(limit.rlim_cur);
}

/// Of this process's control group, of version 2: "MICROSECONDS PERIOD", or "max PERIOD".
double cpu_quota() {
  std::string group = value_of("/proc/self/cgroup", "0:");  // "0::/path"
  group = group.substr(std::min(group.size(), group.find('/')));
  std::istringstream line(first_line(fs::path("/sys/fs/cgroup" + group) / "cpu.max"));
  double quota = 0, period = 0;
  return line >> quota >> period && period > 0 ? quota / period : -1;
}

std::string chosen_of(const std::string& line) {  // "always [madvise] never"
  const auto begin = line.find('['), end = line.find(']');
  return begin == std::string::npos || end == std::string::npos
             ? ""
             : line.substr(begin + 1, end - begin - 1);
}

/// Linux knows the name of x86-64's processors, and of arm64's only numbers.
std::string processor_name() {
  const std::string implementer = value_of("/proc/cpuinfo", "CPU implementer");
  if (implementer.empty()) return value_of("/proc/cpuinfo", "model name");
  return fmt::format("arm64 implementer {}, part {}", implementer,
                     value_of("/proc/cpuinfo", "CPU part"));
}

std::vector<std::string> vector_extensions() {
  static const std::vector<std::string> known = {
      "avx",         "avx2",        "fma",      "avx512f",  "avx512bw", "avx512_vnni",
      "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd",
      "asimdhp",     "asimddp",     "sve",      "sve2",     "bf16",     "i8mm"};
  const std::string of_x86 = value_of("/proc/cpuinfo", "flags");
  std::istringstream flags(of_x86.empty() ? value_of("/proc/cpuinfo", "Features") : of_x86);
  std::vector<std::string> found;
  for (std::string flag; flags >> flag;)
    if (std::find(known.begin(), known.end(), flag) != known.end()) found.push_back(flag);
  return found;
}

}  // namespace

RankFacts gather_rank_facts(int rank, std::string mpi) {
  RankFacts facts;
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  facts.host = host.data();
  facts.rank = rank;
  facts.cpus = allowed_cpus();
  facts.threads = omp_get_max_threads();
  facts.machine_cpus = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  facts.cpu_quota = cpu_quota();
  facts.processor = processor_name();
  facts.vector_extensions = vector_extensions();
  facts.memory = memory_of("MemTotal");
  facts.memory_available = memory_of("MemAvailable");
  struct statvfs shared {};
  if (statvfs("/dev/shm", &shared) == 0) {
    facts.shared_memory = static_cast<std::int64_t>(shared.f_blocks * shared.f_frsize);
    facts.shared_memory_free = static_cast<std::int64_t>(shared.f_bavail * shared.f_frsize);
  }
  facts.open_files = limit_of(RLIMIT_NOFILE);
  facts.locked_memory = limit_of(RLIMIT_MEMLOCK);
  facts.huge_pages = chosen_of(first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
  facts.root = geteuid() == 0;
  std::error_code error;
  facts.nvidia_driver = fs::exists("/proc/driver/nvidia/version", error);
  facts.infiniband =
      fs::exists("/sys/class/infiniband", error) && !fs::is_empty("/sys/class/infiniband", error);
  if (const char* bind = std::getenv("OMP_PROC_BIND")) facts.omp_proc_bind = bind;
  for (const char* name : {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS",
                           "MKL_NUM_THREADS", "BLIS_NUM_THREADS"})
    if (const char* value = std::getenv(name)) facts.thread_counts.emplace_back(name, value);
  facts.mpi = std::move(mpi);
  return facts;
}

std::string ranges_of(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t first = 0; first < numbers.size();) {
    std::size_t last = first;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += last == first ? fmt::format("{}", numbers[first])
                          : fmt::format("{}-{}", numbers[first], numbers[last]);
    first = last + 1;
  }
  return text.empty() ? "none" : text;
}

void to_json(nlohmann::json& json, const RankFacts& facts) {
  json = {{"host", facts.host},
          {"rank", facts.rank},
          {"cpus", facts.cpus},
          {"threads", facts.threads},
          {"machine_cpus", facts.machine_cpus},
          {"cpu_quota", facts.cpu_quota},
          {"processor", facts.processor},
          {"vector_extensions", facts.vector_extensions},
          {"memory_bytes", facts.memory},
          {"memory_available_bytes", facts.memory_available},
          {"shared_memory_bytes", facts.shared_memory},
          {"shared_memory_free_bytes", facts.shared_memory_free},
          {"open_files_limit", facts.open_files},
          {"locked_memory_limit", facts.locked_memory},
          {"transparent_huge_pages", facts.huge_pages},
          {"root", facts.root},
          {"nvidia_driver", facts.nvidia_driver},
          {"infiniband", facts.infiniband},
          {"omp_proc_bind", facts.omp_proc_bind},
          {"thread_counts", facts.thread_counts},
          {"mpi", facts.mpi}};
}

void from_json(const nlohmann::json& json, RankFacts& facts) {
  json.at("host").get_to(facts.host);
  json.at("rank").get_to(facts.rank);
  json.at("cpus").get_to(facts.cpus);
  json.at("threads").get_to(facts.threads);
  json.at("machine_cpus").get_to(facts.machine_cpus);
  json.at("cpu_quota").get_to(facts.cpu_quota);
  json.at("processor").get_to(facts.processor);
  json.at("vector_extensions").get_to(facts.vector_extensions);
  json.at("memory_bytes").get_to(facts.memory);
  json.at("memory_available_bytes").get_to(facts.memory_available);
  json.at("shared_memory_bytes").get_to(facts.shared_memory);
  json.at("shared_memory_free_bytes").get_to(facts.shared_memory_free);
  json.at("open_files_limit").get_to(facts.open_files);
  json.at("locked_memory_limit").get_to(facts.locked_memory);
  json.at("transparent_huge_pages").get_to(facts.huge_pages);
  json.at("root").get_to(facts.root);
  json.at("nvidia_driver").get_to(facts.nvidia_driver);
  json.at("infiniband").get_to(facts.infiniband);
  json.at("omp_proc_bind").get_to(facts.omp_proc_bind);
  json.at("thread_counts").get_to(facts.thread_counts);
  json.at("mpi").get_to(facts.mpi);
}

}  // namespace scone
