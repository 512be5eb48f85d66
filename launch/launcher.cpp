#include "launch/launcher.h"

#include <fmt/format.h>

#include <cstdlib>

#include "launch/slurm_job.h"

namespace scone {

std::string describe_launcher() {
  const auto is_set = [](const char* name) { return std::getenv(name) != nullptr; };
  const auto job = find_slurm_job();
  const char* const pmix = std::getenv("PMIX_VERSION");
  const std::string by_pmix = pmix != nullptr
                                  ? fmt::format(" (PMIx {})", pmix)
                                  : (is_set("PMIX_RANK") ? std::string(" (PMIx)") : std::string());
  if (is_set("OMPI_COMM_WORLD_SIZE")) return "mpirun" + by_pmix;
  if (job && job->by_srun)
    return fmt::format("srun --mpi={}{}", job->mpi,
                       by_pmix.empty() && is_set("PMI_RANK") ? " (PMI)" : by_pmix);
  if (is_set("PMIX_RANK")) return "a launcher with PMIx" + by_pmix;
  if (is_set("PMI_RANK")) return "a launcher with PMI";
  return "none: a single rank";
}

}  // namespace scone
