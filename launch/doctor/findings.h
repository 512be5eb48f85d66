#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/doctor/rank_facts.h"
#include "launch/doctor/speed.h"
#include "launch/slurm_job.h"

namespace scone {

/// Something that looks wrong.
struct Finding {
  bool serious = false;  // a run fails, or is many times slower
  std::string what;
  std::string advice;  // what to do
};

/// What is looked at. Of each rank, by rank.
struct Diagnosis {
  std::vector<RankFacts> ranks;
  std::optional<SlurmJob> slurm;
  std::string session_problem;  // Session::problem
  bool by_mpirun = false;
  std::string folder;  // where the disk was measured
  std::vector<AllReduceSpeed> all_reduce;
  DiskSpeed disk;
  std::vector<double> clocks;
  std::string cuda_problem;
  int cuda_devices = 0;  // that rank 0 sees
};

/// Serious ones first.
std::vector<Finding> find_problems(const Diagnosis& diagnosis);

}  // namespace scone
