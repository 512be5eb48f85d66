#include "launch/threads.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

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
  return std::max(1, CPU_COUNT(&own.cores) / static_cast<int>(sharing));
}

}  // namespace scone
