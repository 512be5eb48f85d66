#include "launch/threads.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "launch/slurm_job.h"

namespace scone {

int default_threads(Communicator& world) {
  struct Place {
    std::array<char, 256> host;
    cpu_set_t cores;
  } own;
  std::memset(&own, 0, sizeof(own));
  gethostname(own.host.data(), own.host.size() - 1);
  sched_getaffinity(0, sizeof(own.cores), &own.cores);
  const auto bytes = std::as_bytes(std::span(&own, 1));
  const auto places = world.all_gather(bytes);
  const auto sharing = std::count_if(places.begin(), places.end(), [&](const auto& other) {
    return std::equal(bytes.begin(), bytes.end(), other.begin(), other.end());
  });
  if (std::getenv("OMP_NUM_THREADS") != nullptr) return omp_get_max_threads();
  const int cores = std::max(1, CPU_COUNT(&own.cores) / static_cast<int>(sharing));
  // Where Slurm does not bind its tasks, they may run on the cores of other jobs too.
  const auto job = find_slurm_job();
  return job && job->cpus_per_task ? std::clamp(*job->cpus_per_task, 1, cores) : cores;
}

}  // namespace scone
