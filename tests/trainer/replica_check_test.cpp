#include "trainer/replica_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "tiny_data.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// Where one value is changed by one bit.
struct Fault {
  int ranks, main_tp, fgram_tp;
  bool in_fgram_model;
  std::string parameter;
  int rank;
};

RunConfig run_of(const TinyData& data, const std::string& name, const Fault& fault) {
  RunConfig config = data.run(name, 2);
  config.parallel.main.tp = fault.main_tp;
  config.parallel.fgram.tp = fault.fgram_tp;
  return config;
}

/// A step, the fault, a save; the message of what each rank threw, "" for none.
std::vector<std::string> save_with(const Fault& fault, const RunConfig& config) {
  std::vector<std::string> messages(static_cast<std::size_t>(fault.ranks));
  run_as_threads(fault.ranks, [&](Communicator& world) {
    omp_set_num_threads(1);
    Trainer trainer(config, cpu_backend(), world);
    trainer.train_step();
    if (world.rank() == fault.rank) {
      const ParameterSet& parameters =
          fault.in_fgram_model ? trainer.fgram_parameters() : trainer.main_parameters();
      float& value = parameters.value(parameters.find(fault.parameter)).span<float>()[5];
      value = std::nextafter(value, 1.0F);
    }
    try {
      trainer.save_checkpoint();
      trainer.finish_checkpoint();
    } catch (const std::runtime_error& error) {
      messages[static_cast<std::size_t>(world.rank())] = error.what();
    }
    world.barrier();
  });
  return messages;
}

TEST(ReplicaCheck, ABitThatDiffersIsFoundBeforeTheSave) {
  const TinyData data;
  const struct {
    Fault fault;
    const char* model;
    const char* ranks;
  } cases[] = {
      {{2, 1, 1, false, "main.token_embedding", 1}, "main", "rank 0 against rank 1"},
      {{4, 2, 1, false, "main.blocks.1.ffw.up.weight", 2}, "main", "rank 0 against rank 2"},
      {{4, 2, 1, true, "fgram.blocks.0.attention.qkv.weight", 1},
       "fgram",
       "ranks 0, 2, 3 against rank 1"},
      {{2, 2, 2, false, "main.blocks.0.ffw_norm.gain", 0}, "main", "rank 0 against rank 1"},
      {{3, 1, 1, true, "fgram.position_embedding", 0}, "fgram", "rank 0 against ranks 1, 2"},
  };
  int number = 0;
  for (const auto& [fault, model, ranks] : cases) {
    const RunConfig config = run_of(data, "run" + std::to_string(number++), fault);
    for (const std::string& message : save_with(fault, config))
      EXPECT_THAT(message,
                  AllOf(HasSubstr("replicas of the " + std::string(model) + " model differ"),
                        HasSubstr("first in " + fault.parameter + ": " + ranks + ";")));
    EXPECT_FALSE(find_checkpoint(config.run.folder).has_value());
  }
}

TEST(ReplicaCheck, IsLeftOutWhereAskedTo) {
  const TinyData data;
  const Fault fault{2, 1, 1, false, "main.token_embedding", 1};
  RunConfig config = run_of(data, "run", fault);
  config.checkpoint.check_replicas = false;
  for (const std::string& message : save_with(fault, config)) EXPECT_EQ(message, "");
  EXPECT_TRUE(find_checkpoint(config.run.folder).has_value());
}

TEST(ReplicaCheck, AgreesAfterStepsOnAnyGrid) {
  const TinyData data;
  int number = 0;
  for (const int main_tp : {1, 2}) {
    for (const int zero : {0, 1}) {
      for (const DType dtype : {DType::fp32, DType::bf16}) {
        RunConfig config = data.run("run" + std::to_string(number++), 2);
        config.parallel.main = {.tp = main_tp, .zero = zero, .sequence_parallel = main_tp > 1};
        config.parallel.fgram = {.tp = 3 - main_tp, .zero = 1 - zero};
        config.compute.dtype = dtype;
        config.optimizer.stochastic_rounding = dtype == DType::bf16;
        run_as_threads(4, [&](Communicator& world) {
          omp_set_num_threads(1);
          Trainer trainer(config, cpu_backend(), world);
          for (int step = 0; step < 4; ++step) trainer.train_step();
          trainer.save_checkpoint();
          trainer.finish_checkpoint();
        });
        EXPECT_TRUE(find_checkpoint(config.run.folder).has_value());
      }
    }
  }
}

}  // namespace
}  // namespace scone
