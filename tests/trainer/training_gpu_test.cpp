// Training on the CUDA backend, against the processor's: on a GPU, or with kernels on the host.

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "model/cuda_test.h"
#include "parallel/cuda/staged_communicator.h"
#include "tiny_data.h"
#include "trainer/trainer.h"
#include "worst_error.h"

namespace scone {
namespace {

#ifdef SCONE_CUDA_ON_HOST
constexpr std::int64_t kSteps = 6;
#else
constexpr std::int64_t kSteps = 50;
#endif

RunConfig run_of(const TinyData& data, const std::string& name, Device device, DType dtype) {
  RunConfig config = data.run(name, 2);
  config.trainer.steps = kSteps;
  config.compute.device = device;
  config.compute.dtype = dtype;
  return config;
}

std::unique_ptr<Communicator> device_world() {
  test_cuda_backend();  // opens the device
  return make_staged_communicator(make_self_communicator());
}

std::vector<double> train(Trainer& trainer, std::int64_t steps) {
  std::vector<double> losses;
  for (std::int64_t step = 0; step < steps; ++step) losses.push_back(trainer.train_step().loss);
  return losses;
}

TEST(CudaTraining, LossesFollowTheProcessors) {
  const TinyData data;
  const auto self = make_self_communicator();
  Trainer expected_trainer(run_of(data, "cpu", Device::cpu, DType::fp32), cpu_backend(), *self);
  const std::vector<double> expected = train(expected_trainer, kSteps);
  const auto world = device_world();
  for (const auto& [dtype, name, allowed] :
       {std::tuple{DType::fp32, "fp32", 1e-3}, std::tuple{DType::bf16, "bf16", 2e-2}}) {
    Trainer trainer(run_of(data, name, Device::cuda, dtype), test_cuda_backend(), *world);
    const std::vector<double> found = train(trainer, kSteps);
    double worst = 0;
    for (std::size_t step = 0; step < found.size(); ++step)
      worst = worse(worst, std::abs(found[step] / expected[step] - 1));
    std::printf("%s: losses of %zu steps within %.1e of the processor's, allowed %.0e\n", name,
                found.size(), worst, allowed);
    EXPECT_LT(worst, allowed);
    EXPECT_LT(found.back(), found.front());
  }
}

TEST(CudaTraining, ResumesBitForBitAndOnTheProcessor) {
  const TinyData data;
  const auto world = device_world();
  const auto self = make_self_communicator();
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    const std::string name = name_of(dtype);
    Trainer whole(run_of(data, name + "-whole", Device::cuda, dtype), test_cuda_backend(), *world);
    const std::vector<double> losses = train(whole, 4);
    const RunConfig config = run_of(data, name, Device::cuda, dtype);
    {
      Trainer first(config, test_cuda_backend(), *world);
      train(first, 2);
      first.save_checkpoint();
    }
    Trainer second(config, test_cuda_backend(), *world);
    const std::vector<double> resumed = train(second, 2);
    EXPECT_EQ(resumed[0], losses[2]);
    EXPECT_EQ(resumed[1], losses[3]);
    RunConfig on_processor = run_of(data, name, Device::cpu, DType::fp32);
    Trainer third(on_processor, cpu_backend(), *self);
    EXPECT_NEAR(third.train_step().loss, losses[2], dtype == DType::fp32 ? 1e-4 : 5e-2);
  }
}

/// Two grids, with ZeRO and sequence parallelism, of ranks that share the device.
TEST(CudaTraining, RanksThatShareADeviceAgreeWithOne) {
  const TinyData data;
  const std::int64_t steps = 2;
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    const auto world = device_world();
    const std::string name = name_of(dtype);
    Trainer alone(run_of(data, name + "-alone", Device::cuda, dtype), test_cuda_backend(), *world);
    const std::vector<double> expected = train(alone, steps);
    std::mutex mutex;
    run_as_threads(4, [&](Communicator& host) {
      omp_set_num_threads(1);
      const auto ranks = make_staged_communicator(host.split(0, "world"));
      RunConfig config = run_of(data, name + "-ranks", Device::cuda, dtype);
      config.parallel.main = {.tp = 2, .zero = 1, .sequence_parallel = true};
      config.parallel.fgram = {.tp = 1, .zero = 1};
      config.trainer.microbatch_tokens = config.trainer.sequence_length;
      Trainer trainer(config, test_cuda_backend(), *ranks);
      const std::vector<double> found = train(trainer, steps);
      const std::lock_guard lock(mutex);
      for (std::size_t step = 0; step < found.size(); ++step)
        EXPECT_NEAR(found[step], expected[step], dtype == DType::fp32 ? 1e-4 : 3e-2);
    });
  }
}

/// Gradients of what all ranks of a tensor group hold have the same bits on all of them.
void expect_alike(ParameterSet& parameters, DistributedOptimizer& optimizer,
                  const ProcessGrid& grid) {
  optimizer.gather_gradients();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters.spec(i).replicated()) continue;
    std::vector<float> own(static_cast<std::size_t>(parameters.gradient(i).elements()));
    test_cuda_backend().download(parameters.gradient(i), own);
    const auto all = grid.tensor().all_gather(std::as_bytes(std::span(own)));
    EXPECT_TRUE(all.front() == all.back()) << parameters.spec(i).name;
  }
}

// Each position embedding's gradient is a sum over four sequences, beside those of the tokens of a
// part of the vocabulary, another on each rank.
TEST(CudaTraining, TensorParallelRanksTrainTheSamePositions) {
  const TinyData data;
  test_cuda_backend();
  for (const int zero : {0, 1}) {
    run_as_threads(4, [&](Communicator& host) {
      omp_set_num_threads(1);
      const auto ranks = make_staged_communicator(host.split(0, "world"));
      RunConfig config =
          run_of(data, "positions-" + std::to_string(zero), Device::cuda, DType::fp32);
      config.model.main.position = config.model.fgram.position = PositionKind::learned;
      config.parallel.main = {.tp = 2, .zero = zero};
      config.parallel.fgram = {.tp = 2, .zero = zero};
      config.trainer.microbatch_tokens = 4 * config.trainer.sequence_length;
      Trainer trainer(config, test_cuda_backend(), *ranks);
      for (int step = 0; step < 2; ++step) {
        trainer.train_step();
        expect_alike(trainer.main_parameters(), trainer.main_optimizer(), trainer.grids().main);
        expect_alike(trainer.fgram_parameters(), trainer.fgram_optimizer(), trainer.grids().fgram);
      }
      EXPECT_NO_THROW(trainer.save_checkpoint());
    });
  }
}

}  // namespace
}  // namespace scone
