#include "launch/slurm_job.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

namespace scone {
namespace {

template <typename Number>
std::optional<Number> number_of(const char* text) {
  if (text == nullptr) return std::nullopt;
  Number number = 0;
  const char* const end = text + std::strlen(text);
  const auto result = std::from_chars(text, end, number);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return number;
}

std::string text_of(const char* text) { return text == nullptr ? "" : text; }

/// "3d 04h", "23h 10m", "12m", "50s".
std::string rough_time(std::int64_t seconds) {
  if (seconds < 120) return fmt::format("{}s", std::max<std::int64_t>(0, seconds));
  const std::int64_t minutes = seconds / 60, hours = minutes / 60;
  if (hours == 0) return fmt::format("{}m", minutes);
  if (hours < 72) return fmt::format("{}h {:02}m", hours, minutes % 60);
  return fmt::format("{}d {:02}h", hours / 24, hours % 24);
}

std::string counted(std::int64_t count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

}  // namespace

std::optional<SlurmJob> find_slurm_job(const Environment& variable) {
  const std::string id = text_of(variable("SLURM_JOB_ID"));
  const auto tasks = number_of<int>(variable("SLURM_NTASKS"));
  if (id.empty() && !tasks) return std::nullopt;
  const auto number = [&](const char* name) { return number_of<int>(variable(name)); };
  SlurmJob job;
  const std::string array = text_of(variable("SLURM_ARRAY_JOB_ID"));
  job.id = array.empty() ? id : array + "_" + text_of(variable("SLURM_ARRAY_TASK_ID"));
  job.partition = text_of(variable("SLURM_JOB_PARTITION"));
  job.restarts = number("SLURM_RESTART_COUNT").value_or(0);
  job.nodes = number("SLURM_JOB_NUM_NODES").value_or(1);
  job.tasks = tasks.value_or(1);
  job.cpus_per_task = number("SLURM_CPUS_PER_TASK");
  job.cpus_on_node = number("SLURM_CPUS_ON_NODE");
  job.end = number_of<std::int64_t>(variable("SLURM_JOB_END_TIME"));
  // mpirun starts its ranks by a step of its own, whose numbers are of its daemons.
  job.by_mpirun = variable("OMPI_COMM_WORLD_SIZE") != nullptr;
  job.by_srun = !job.by_mpirun && variable("SLURM_STEP_ID") != nullptr;
  if (job.by_mpirun) {
    job.tasks = number("OMPI_COMM_WORLD_SIZE").value_or(1);
    job.rank = number("OMPI_COMM_WORLD_RANK").value_or(0);
    job.local_rank = number("OMPI_COMM_WORLD_LOCAL_RANK").value_or(0);
  } else if (job.by_srun) {
    job.nodes = number("SLURM_STEP_NUM_NODES").value_or(job.nodes);
    job.tasks = number("SLURM_STEP_NUM_TASKS").value_or(job.tasks);
    job.rank = number("SLURM_PROCID").value_or(0);
    job.local_rank = number("SLURM_LOCALID").value_or(0);
    const std::string mpi = text_of(variable("SLURM_MPI_TYPE"));
    job.mpi = mpi.empty() ? "none" : mpi;
  }
  return job;
}

std::optional<SlurmJob> find_slurm_job() {
  return find_slurm_job([](const char* name) { return std::getenv(name); });
}

std::string describe(const SlurmJob& job, std::int64_t now) {
  std::string text = "Slurm job " + (job.id.empty() ? "of unknown number" : job.id);
  if (job.restarts > 0) text += fmt::format(", restart {}", job.restarts);
  if (!job.partition.empty()) text += fmt::format(", in {}", job.partition);
  text += fmt::format(": {}, {}", counted(job.nodes, "node"), counted(job.tasks, "task"));
  if (job.cpus_per_task)
    text += fmt::format(", {} each", counted(*job.cpus_per_task, "CPU"));
  else if (job.cpus_on_node)
    text += fmt::format(", {} on this node", counted(*job.cpus_on_node, "CPU"));
  text += job.end ? fmt::format(", {} left", rough_time(*job.end - now)) : ", time left unknown";
  if (job.by_srun || job.by_mpirun)
    text += fmt::format("; rank {}, {} on its node, by {}", job.rank, job.local_rank,
                        job.by_srun ? "srun --mpi=" + job.mpi : "mpirun");
  return text;
}

std::string srun_problem(const SlurmJob& job, const Environment& variable) {
  if (!job.by_srun) return "";
  for (const char* name : {"PMIX_RANK", "PMI_RANK", "PMI_FD", "PMI2_RANK", "OMPI_COMM_WORLD_RANK"})
    if (variable(name) != nullptr) return "";
  return fmt::format(
      "srun started this process as one of {} (--mpi={}) without PMIx, by which the ranks of MPI "
      "find one another: start it with `srun --mpi=pmix` (`srun --mpi=list` says what there is), "
      "or "
      "with mpirun",
      job.tasks, job.mpi);
}

}  // namespace scone
