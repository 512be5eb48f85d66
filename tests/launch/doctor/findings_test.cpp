#include "launch/doctor/findings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "trainer/built_with.h"

namespace scone {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kGigabyte = 1'000'000'000;

/// Two nodes of two ranks, each with four CPUs of its own, and nothing wrong with them.
Diagnosis healthy() {
  Diagnosis diagnosis;
  for (int rank = 0; rank < 4; ++rank) {
    RankFacts facts;
    facts.host = rank < 2 ? "node-a" : "node-b";
    facts.rank = rank;
    facts.cpus.resize(4);
    std::iota(facts.cpus.begin(), facts.cpus.end(), 4 * (rank % 2));
    facts.threads = 4;
    facts.machine_cpus = 8;
    facts.memory = 100 * kGigabyte;
    facts.memory_available = 80 * kGigabyte;
    facts.shared_memory = facts.shared_memory_free = 50 * kGigabyte;
    facts.open_files = 1 << 16;
    facts.mpi = "Open MPI 4.1.4";
    diagnosis.ranks.push_back(facts);
  }
  diagnosis.folder = "runs";
  diagnosis.all_reduce = {{1024, 1e-5, 1000}, {1 << 20, 1e-3, 100}};
  diagnosis.disk.bytes = kGigabyte;
  diagnosis.disk.write_seconds = diagnosis.disk.read_seconds = 1;
  diagnosis.disk.capacity = 1000 * kGigabyte;
  diagnosis.disk.free = 500 * kGigabyte;
  diagnosis.clocks = {0, 0.1, -0.2, 0};
  return diagnosis;
}

TEST(Doctor, FindsNothingWhereNothingIsWrong) {
  EXPECT_TRUE(find_problems(healthy()).empty());
  Diagnosis alone = healthy();
  alone.ranks.resize(1);
  alone.clocks.resize(1);
  EXPECT_TRUE(find_problems(alone).empty());
}

struct Trouble {
  bool serious;
  const char* found;
  std::function<void(Diagnosis&)> make;
};

TEST(Doctor, FindsOneTroubleAtATime) {
  const std::vector<Trouble> troubles = {
      {true, "node-b: ranks 2-3 compute with 8 threads together on the same 4 CPUs (0-3)",
       [](Diagnosis& d) { d.ranks[3].cpus = d.ranks[2].cpus; }},
      {true, "node-a: rank 1 computes with 4 threads on 3 CPUs (4-6)",
       [](Diagnosis& d) { d.ranks[1].cpus.pop_back(); }},
      {true, "node-a: ranks 0-1 share CPUs 0-7, and OMP_PROC_BIND=close binds",
       [](Diagnosis& d) {
         for (RankFacts* rank : {&d.ranks[0], &d.ranks[1]}) {
           rank->cpus.resize(8);
           std::iota(rank->cpus.begin(), rank->cpus.end(), 0);
         }
         d.ranks[0].omp_proc_bind = "False";
         d.ranks[1].omp_proc_bind = "close";
       }},
      {false, "node-a: 8 threads, but the control group has 2.5 CPUs of time",
       [](Diagnosis& d) { d.ranks[0].cpu_quota = 2.5; }},
      {false, "node-a: 4.0 of 100.0 GB of memory are available",
       [](Diagnosis& d) { d.ranks[0].memory_available = 4 * kGigabyte; }},
      {false, "node-b: 30 MB free in /dev/shm, by which its 2 ranks talk",
       [](Diagnosis& d) { d.ranks[2].shared_memory_free = 30'000'000; }},
      {false, "node-a: a process may open 256 files",
       [](Diagnosis& d) { d.ranks[0].open_files = 256; }},
      {true, "node-a: a process may lock 64 KiB of memory, but InfiniBand",
       [](Diagnosis& d) {
         d.ranks[0].infiniband = true;
         d.ranks[0].locked_memory = 65536;
       }},
      {false, "the nodes have 1 to 2 ranks",
       [](Diagnosis& d) {
         d.ranks.pop_back();
         d.clocks.pop_back();
       }},
      {false, "OMP_NUM_THREADS='many' is no number of threads",
       [](Diagnosis& d) {
         d.ranks[0].thread_counts = {{"OMP_NUM_THREADS", "4,2"}};  // a number a level
         d.ranks[1].thread_counts = {{"OMP_NUM_THREADS", "many"}};
       }},
      {true, "the ranks run with different MPI libraries: MPICH 4; Open MPI 4.1.4",
       [](Diagnosis& d) { d.ranks[3].mpi = "MPICH 4"; }},
      {false, "ranks compute with 2 to 4 threads", [](Diagnosis& d) { d.ranks[3].threads = 2; }},
      {false, "mpirun runs as root",
       [](Diagnosis& d) {
         d.by_mpirun = true;
         d.ranks[0].root = true;
       }},
      {true, "no PMIx", [](Diagnosis& d) { d.session_problem = "no PMIx: start it with PMIx"; }},
      {true, "Slurm gives this job 4 tasks, but this is the only rank",
       [](Diagnosis& d) {
         d.ranks.resize(1);
         d.clocks.resize(1);
         d.slurm = SlurmJob();
         d.slurm->tasks = 4;
       }},
      {true, "runs cannot be written: Permission denied",
       [](Diagnosis& d) { d.disk.error = "Permission denied"; }},
      {false, "runs is written at 20 MB/s", [](Diagnosis& d) { d.disk.write_seconds = 50; }},
      {false, "runs is read at 10 MB/s", [](Diagnosis& d) { d.disk.read_seconds = 100; }},
      {false, "runs: 10.0 of 1000.0 GB are free",
       [](Diagnosis& d) { d.disk.free = 10 * kGigabyte; }},
      {true, "ranks 2-3 do not see rank 0's file in runs",
       [](Diagnosis& d) {
         d.disk.blind = {2, 3};
       }},
      {false, "an all-reduce of 1 KiB takes 20.0 ms",
       [](Diagnosis& d) { d.all_reduce.front().seconds = 0.02; }},
      {false, "the clock of node-b (rank 2) is -5.0 s off rank 0's",
       [](Diagnosis& d) {
         d.clocks = {0, 3, -5, 0};
       }},
      {false, "no GPU can be used: no driver", [](Diagnosis& d) { d.cuda_problem = "no driver"; }},
      {false, "2 ranks on node-a share 1 GPUs", [](Diagnosis& d) { d.cuda_devices = 1; }},
  };
  for (const Trouble& trouble : troubles) {
    Diagnosis diagnosis = healthy();
    trouble.make(diagnosis);
    const auto found = find_problems(diagnosis);
    ASSERT_EQ(found.size(), 1U) << trouble.found;
    EXPECT_THAT(found[0].what, HasSubstr(trouble.found));
    EXPECT_EQ(found[0].serious, trouble.serious) << trouble.found;
    EXPECT_FALSE(found[0].advice.empty()) << trouble.found;
  }
}

TEST(Doctor, KnowsOfADriverWithoutCudaInTheProgram) {
  Diagnosis diagnosis = healthy();
  diagnosis.ranks[0].nvidia_driver = true;
  EXPECT_EQ(find_problems(diagnosis).empty(), built_with_cuda());
}

TEST(Doctor, TellsWhatIsSeriousFirst) {
  Diagnosis diagnosis = healthy();
  diagnosis.ranks[0].open_files = 256;
  diagnosis.disk.blind = {1};
  diagnosis.clocks[1] = 9;
  const auto found = find_problems(diagnosis);
  ASSERT_EQ(found.size(), 3U);
  EXPECT_THAT(found[0].what, HasSubstr("do not see"));
  EXPECT_TRUE(found[0].serious && !found[1].serious && !found[2].serious);
}

}  // namespace
}  // namespace scone
