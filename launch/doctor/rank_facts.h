#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace scone {

/// What a rank sees of its node and of its own place on it. Bytes; limits: -1 is unlimited; what
/// this system does not tell is -1 too, or empty.
struct RankFacts {
  std::string host;
  int rank = 0;
  std::vector<int> cpus;  // that it may run on, ascending
  int threads = 0;        // that it computes with
  int machine_cpus = 0;
  double cpu_quota = -1;  // CPUs that the control group lets its processes use together
  std::string processor;
  std::vector<std::string> vector_extensions;  // of the processor: avx2, avx512f, ..
  std::int64_t memory = -1, memory_available = -1;
  std::int64_t shared_memory = -1, shared_memory_free = -1;  // of /dev/shm
  std::int64_t open_files = -1, locked_memory = -1;          // limits
  std::string huge_pages;                                    // transparent ones: always, ..
  bool root = false;
  bool nvidia_driver = false, infiniband = false;
  std::string omp_proc_bind;                                       // OMP_PROC_BIND, or empty
  std::vector<std::pair<std::string, std::string>> thread_counts;  // variables that set them
  std::string mpi;                                                 // the library's first line
};

RankFacts gather_rank_facts(int rank, std::string mpi);

/// "0-3,8".
std::string ranges_of(const std::vector<int>& numbers);

void to_json(nlohmann::json& json, const RankFacts& facts);
void from_json(const nlohmann::json& json, RankFacts& facts);

}  // namespace scone
