#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_folder.h"
#include "model/ops/ops.h"
#include "tiny_data.h"
#include "trainer/trainer.h"
#include "worst_error.h"

namespace scone {
namespace {

/// A run on which rounding stays rounding.
RunConfig steady_run(const TinyData& data, const std::string& name, std::int64_t fgram_layers = 2) {
  RunConfig config = data.run(name, fgram_layers);
  config.model.main.width = config.model.fgram.width = 24;
  config.model.main.heads = config.model.fgram.heads = 12;
  config.model.main.ffw = config.model.fgram.ffw = 36;
  config.optimizer.epsilon = 1e-4;
  config.trainer.bad_step_sigma = 20;
  config.trainer.bad_step_window = 4;
  if (fgram_layers == 0) config.fgrams.vocabulary.clear();
  return config;
}

/// Losses of `steps` more steps on `ranks`, resumed from the run's newest checkpoint, saved then.
std::vector<double> more_steps(const RunConfig& config, int ranks, int steps) {
  std::vector<double> losses;
  run_as_threads(ranks, [&](Communicator& world) {
    omp_set_num_threads(1);
    Trainer trainer(config, cpu_backend(), world);
    for (int step = 0; step < steps; ++step) {
      const double loss = trainer.train_step().loss;
      if (world.rank() == 0) losses.push_back(loss);
    }
    trainer.save_checkpoint();
    trainer.finish_checkpoint();
  });
  return losses;
}

TEST(Resume, OnOtherRanksAndGrids) {
  const TinyData data(1);
  const std::vector<double> expected = more_steps(steady_run(data, "whole"), 1, 15);
  struct Leg {
    int ranks, main_tp, fgram_tp, zero;
    bool async;
  };
  std::vector<double> found;
  for (const Leg& leg : {Leg{1, 1, 1, 0, false}, Leg{2, 2, 1, 1, true}, Leg{4, 2, 4, 1, false},
                         Leg{3, 1, 3, 1, true}, Leg{1, 1, 1, 1, false}}) {
    RunConfig config = steady_run(data, "legs");
    config.parallel.main = {.tp = leg.main_tp, .zero = leg.zero};
    config.parallel.fgram = {.tp = leg.fgram_tp, .zero = 1 - leg.zero};
    config.checkpoint.async = leg.async;
    const auto losses = more_steps(config, leg.ranks, 3);
    found.insert(found.end(), losses.begin(), losses.end());
  }
  double worst = 0;
  for (std::size_t step = 0; step < expected.size(); ++step)
    worst = worse(worst, std::abs(found[step] / expected[step] - 1));
  std::printf("1 -> 2 -> 4 -> 3 -> 1 ranks: losses within %.1e of one rank's\n", worst);
  EXPECT_LT(worst, 1e-5);
}

/// Nine steps of a run that goes on after five have the losses of one that does not stop.
void expect_same_losses(const RunConfig& whole, const RunConfig& parts, int ranks) {
  const auto expected = more_steps(whole, ranks, 9);
  std::vector<double> found = more_steps(parts, ranks, 5);
  for (const double loss : more_steps(parts, ranks, 4)) found.push_back(loss);
  EXPECT_EQ(found, expected);
}

TEST(Resume, OnTheSameGridBitForBit) {
  const TinyData data;
  for (const int ranks : {1, 4}) {
    RunConfig whole = steady_run(data, "whole" + std::to_string(ranks));
    RunConfig parts = steady_run(data, "parts" + std::to_string(ranks));
    for (RunConfig* config : {&whole, &parts}) {
      config->parallel.main = {.tp = std::min(ranks, 2), .zero = 1, .sequence_parallel = true};
      config->parallel.fgram = {.tp = 1, .zero = 1};
    }
    expect_same_losses(whole, parts, ranks);
  }
}

// bf16 copies that are rounded at random are those of the last update, skipped steps or not.
TEST(Resume, BitForBitWithStochasticRounding) {
  const TinyData data;
  for (const int ranks : {1, 2}) {
    RunConfig whole = steady_run(data, "whole" + std::to_string(ranks));
    RunConfig parts = steady_run(data, "parts" + std::to_string(ranks));
    for (RunConfig* config : {&whole, &parts}) {
      config->compute.dtype = DType::bf16;
      config->optimizer.stochastic_rounding = true;
      config->optimizer.peak_lr = 1e-3;
      config->parallel.main.zero = config->parallel.fgram.zero = 1;
      config->parallel.bucket_elements = 1000;
    }
    expect_same_losses(whole, parts, ranks);
  }
}

TEST(Resume, WithAnFgramModelMoreOrLess) {
  const TinyData data;
  const RunConfig baseline = steady_run(data, "run", 0);
  RunConfig scone = steady_run(data, "run", 2);
  scone.trainer.bad_step_sigma = 0;  // the loss leaps where the model joins
  const auto expected = more_steps(steady_run(data, "whole", 0), 2, 9);
  std::vector<double> found = more_steps(baseline, 2, 6);
  more_steps(scone, 2, 0);  // an f-gram model joins, and is saved at the same step
  const auto self = make_self_communicator();
  Trainer joined(scone, cpu_backend(), *self), fresh(steady_run(data, "new"), cpu_backend(), *self);
  EXPECT_TRUE(std::ranges::equal(joined.fgram_parameters().flat_values().span<float>(),
                                 fresh.fgram_parameters().flat_values().span<float>()));
  EXPECT_FALSE(std::ranges::equal(joined.main_parameters().flat_values().span<float>(),
                                  fresh.main_parameters().flat_values().span<float>()));
  // Adam's first step is as long as the learning rate, and so it is for a model that joins late.
  const double lr = joined.train_step().lr;
  const auto before = fresh.fgram_parameters().flat_values().span<float>();
  const auto after = joined.fgram_parameters().flat_values().span<float>();
  double longest = 0;
  for (std::size_t i = 0; i < before.size(); ++i)
    longest = std::max(longest, std::abs(double{after[i]} - double{before[i]}));
  EXPECT_GT(longest / lr, 0.7);  // with the main model's number of updates 0.45 at most
  EXPECT_LT(longest / lr, 1.05);
  const auto saved = read_manifest(find_checkpoint(scone.run.folder).value()).run;
  EXPECT_EQ(saved.at("updates"), 6);
  EXPECT_EQ(saved.at("fgram_updates"), 0);
  for (const double loss : more_steps(baseline, 2, 3)) found.push_back(loss);  // and leaves
  EXPECT_EQ(found, expected);
}

/// Sends this process a signal when a checkpoint's line is logged, once.
class SignalAtSave final : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const std::string_view text(message.payload.data(), message.payload.size());
    if (sent_ || !text.starts_with("checkpoint /")) return;
    sent_ = true;
    kill(getpid(), SIGTERM);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // until it was taken
  }
  void flush_() override {}

 private:
  bool sent_ = false;
};

// The time before a batch system ends the job may be for one save.
TEST(Resume, AStopWithinASaveMakesNoOther) {
  const TinyData data;
  RunConfig config = steady_run(data, "run");
  config.trainer.steps = 1'000'000;
  config.checkpoint.every = 3;
  config.checkpoint.keep = 0;
  config.checkpoint.async = false;
  std::filesystem::create_directories(config.run.folder);
  auto& sinks = spdlog::default_logger()->sinks();
  sinks.push_back(std::make_shared<SignalAtSave>());
  const auto self = make_self_communicator();
  Trainer trainer(config, cpu_backend(), *self);
  const TrainingResult result = trainer.run();
  sinks.pop_back();
  EXPECT_TRUE(result.stopped_early);
  EXPECT_EQ(result.step, 3);
  EXPECT_EQ(list_checkpoints(std::filesystem::path(config.run.folder) / "checkpoints").size(), 1U);
}

TEST(Resume, ARunOutOfTimeSavesAndStops) {
  const TinyData data;
  RunConfig config = steady_run(data, "run");
  config.trainer.steps = 1'000'000;
  config.run.time_limit = 0.05;
  config.logging.every = 1'000'000;
  std::filesystem::create_directories(config.run.folder);
  run_as_threads(2, [&](Communicator& world) {
    omp_set_num_threads(1);
    Trainer trainer(config, cpu_backend(), world);
    const TrainingResult result = trainer.run();
    EXPECT_TRUE(result.stopped_early);
    if (world.rank() == 0) {
      EXPECT_EQ(read_manifest(find_checkpoint(config.run.folder).value()).step, result.step);
    }
    world.barrier();
  });
}

// The seconds that a run is given to stop are for its checkpoint.
TEST(Resume, ARunThatStopsEarlyDoesNotEvaluate) {
  const TinyData data;
  RunConfig config = steady_run(data, "run");
  config.trainer.steps = 1'000'000;
  config.trainer.eval_every = 1;
  config.run.time_limit = 1e-9;
  std::filesystem::create_directories(config.run.folder);
  const auto self = make_self_communicator();
  {
    Trainer trainer(config, cpu_backend(), *self);
    const TrainingResult result = trainer.run();
    EXPECT_TRUE(result.stopped_early);
    EXPECT_EQ(result.step, 1);
    EXPECT_FALSE(result.validation_loss);
  }
  config.trainer.steps = 2;  // a run that is done is evaluated all the same
  Trainer trainer(config, cpu_backend(), *self);
  EXPECT_TRUE(trainer.run().validation_loss);
}

TEST(Resume, PermanentCheckpointsStay) {
  const TinyData data;
  RunConfig config = steady_run(data, "run");
  config.checkpoint.keep = 1;
  config.checkpoint.permanent_every = 4;
  const auto self = make_self_communicator();
  Trainer trainer(config, cpu_backend(), *self);
  for (int step = 0; step < 6; ++step) {
    trainer.train_step();
    trainer.save_checkpoint();
  }
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(config.run.folder + "/checkpoints"))
    left.push_back(entry.path().filename());
  EXPECT_THAT(left, ::testing::UnorderedElementsAre("step-00000004", "step-00000006"));
}

TEST(Resume, AnOutlierIsSkippedAlikeOnAllRanks) {
  const TinyData data;
  RunConfig config = steady_run(data, "run");
  config.trainer.bad_step_sigma = 1e-6;  // every loss above the window's mean is far off
  run_as_threads(3, [&](Communicator& world) {
    omp_set_num_threads(1);
    Trainer trainer(config, cpu_backend(), world);
    int skipped = 0;
    for (int step = 0; step < 20; ++step) {
      const StepMetrics metrics = trainer.train_step();
      EXPECT_TRUE(step >= 4 || !metrics.skipped());
      skipped += metrics.skipped();
    }
    EXPECT_GT(skipped, 0);
    EXPECT_EQ(world.all_reduce_value(std::int64_t{skipped}, ReduceOp::max), skipped);
  });
}

/// While it lives, what is logged goes here.
class KeptLog {
 public:
  KeptLog() {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text_)));
  }
  ~KeptLog() { spdlog::set_default_logger(before_); }
  KeptLog(const KeptLog&) = delete;
  KeptLog& operator=(const KeptLog&) = delete;
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
};

TEST(Resume, AnErrorIsToldBeforeTheSaveUnderWayIsWaitedFor) {
  const TinyData data;
  RunConfig config = steady_run(data, "run");
  config.checkpoint.async = true;
  config.checkpoint.check_replicas = false;  // one rank alone saves
  std::filesystem::create_directories(config.run.folder);
  const KeptLog log;
  std::string told;  // before the writer is waited for, which happens in the trainer's destructor
  EXPECT_THROW(run_as_threads(2,
                              [&](Communicator& world) {
                                omp_set_num_threads(1);
                                Trainer trainer(config, cpu_backend(), world);
                                if (world.rank() == 0) {
                                  trainer.save_checkpoint();  // waits for the other rank's part
                                  trainer.call_in_step([](std::int64_t) {
                                    throw std::runtime_error("rank 0 has enough");
                                  });
                                }
                                try {
                                  trainer.run();
                                } catch (const std::exception&) {
                                  if (world.rank() == 0) told = log.text();
                                  throw;
                                }
                              }),
               std::runtime_error);
  EXPECT_THAT(told, ::testing::HasSubstr("rank 0 has enough"));
}

// The limit on files stands for a full disk.
TEST(Resume, ARunGoesOnWhereNothingCanBeWritten) {
  const TinyData data;
  RunConfig config = steady_run(data, "run");
  config.trainer.steps = 6;
  config.checkpoint.every = 2;
  config.logging.tensorboard = true;
  std::filesystem::create_directories(config.run.folder);
  std::signal(SIGXFSZ, SIG_IGN);
  const auto self = make_self_communicator();
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  std::string error;
  {
    const KeptLog log;
    Trainer trainer(config, cpu_backend(), *self);
    const rlimit full{700, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
    try {
      trainer.run();
    } catch (const std::exception& thrown) {
      error = thrown.what();
    }
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_THAT(log.text(), ::testing::HasSubstr("metrics.jsonl: cannot be written: File too "
                                                 "large; training goes on"));
    EXPECT_THAT(log.text(), ::testing::HasSubstr("checkpoint of step 6 was not saved"));
  }
  EXPECT_THAT(error, ::testing::HasSubstr("the last checkpoint was not saved"));
  std::ifstream lines(config.run.folder + "/metrics.jsonl");
  std::int64_t step = 0;
  for (std::string line; std::getline(lines, line);)
    EXPECT_EQ(nlohmann::json::parse(line).at("step"), ++step);
  EXPECT_EQ(step, 6);
}

TEST(Resume, AFailedSaveIsToldThoughTheRunEndsByAnError) {
  const TinyData data;
  RunConfig config = steady_run(data, "run");
  config.checkpoint.async = true;
  std::filesystem::create_directories(config.run.folder);
  const KeptLog log;
  const auto self = make_self_communicator();
  try {
    Trainer trainer(config, cpu_backend(), *self);
    trainer.train_step();
    std::ofstream(config.run.folder + "/checkpoints") << "no folder";
    trainer.save_checkpoint();
    throw std::runtime_error("the run ends");
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "the run ends");
  }
  EXPECT_THAT(log.text(),
              ::testing::HasSubstr("checkpoint of step 1 was not saved, the ones before "
                                   "it stay: "));
}

}  // namespace
}  // namespace scone
