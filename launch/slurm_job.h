#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace scone {

/// The Slurm job that this process belongs to, from the environment that Slurm gives it.
struct SlurmJob {
  std::string id;  // "12", of an array's task "10_2"
  std::string partition;
  int restarts = 0;  // how often it was requeued
  int nodes = 1;
  int tasks = 1;                     // of the job, or of what started this process: of the step
  std::optional<int> cpus_per_task;  // where it was asked for
  std::optional<int> cpus_on_node;   // of the job, here
  std::optional<std::int64_t> end;   // of its time; seconds since 1970
  // What started this process; otherwise it is the batch script, or what that started.
  bool by_srun = false, by_mpirun = false;
  int rank = 0, local_rank = 0;  // of what it started, and among those of this node
  std::string mpi;               // srun's --mpi: pmix, none, ..
};

using Environment = std::function<const char*(const char*)>;

/// None: not in a job of Slurm. What is not a number where one is expected counts as not there.
std::optional<SlurmJob> find_slurm_job(const Environment& variable);
std::optional<SlurmJob> find_slurm_job();

/// "Slurm job 12, restart 1, in gpus: 2 nodes, 8 tasks, 4 CPUs each, 23h 10m left; srun
/// --mpi=pmix, task 0, 0 on its node". now: seconds since 1970.
std::string describe(const SlurmJob& job, std::int64_t now);

/// Why the ranks that srun started cannot find one another, with what to do; empty: nothing is
/// known against it. `variable`: how launchers say that they serve MPI.
std::string srun_problem(const SlurmJob& job, const Environment& variable);

}  // namespace scone
