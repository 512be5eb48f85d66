#include "trainer/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <limits>
#include <thread>

#include "checkpoint/bake.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/durable_file.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "tiny_data.h"
#include "trainer/generation.h"
#include "trainer/learning_rate.h"

namespace scone {
namespace {

TEST(Trainer, LossFallsAndMetricsHaveALineAStep) {
  const TinyData data;
  RunConfig config = data.run("run", 2);
  config.trainer.steps = 40;
  const auto self = make_self_communicator();
  std::filesystem::create_directories(config.run.folder);
  Trainer trainer(config, cpu_backend(), *self);
  const TrainingResult result = trainer.run();
  EXPECT_EQ(result.step, 40);
  EXPECT_EQ(result.tokens, 40 * 256);
  std::ifstream lines(std::filesystem::path(config.run.folder) / "metrics.jsonl");
  std::vector<nlohmann::json> steps;
  for (std::string line; std::getline(lines, line);) steps.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(steps.size(), 40U);
  EXPECT_LT(steps.back().at("loss").get<double>(), steps.front().at("loss").get<double>() - 1.5);
  for (const char* key :
       {"step", "tokens", "loss", "lr", "grad_norm", "step_seconds", "tokens_per_second",
        "main_peak_share", "fgram_peak_share", "fgram_nodes_per_token",
        "fgram_nodes_computed_per_token", "data_wait_share"})
    EXPECT_TRUE(steps[3].contains(key)) << key;
  EXPECT_TRUE(steps.back().contains("validation_loss"));
  EXPECT_GT(steps[3].at("fgram_nodes_per_token").get<double>(), 0.1);
}

/// All parameters' bits.
std::vector<float> parameters_of(Trainer& trainer) {
  std::vector<float> all;
  for (ParameterSet* set : {&trainer.main_parameters(), &trainer.fgram_parameters()}) {
    if (set->size() == 0) continue;
    const auto values = set->flat_values().span<float>();
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

TEST(Trainer, ResumesBitForBit) {
  const TinyData data;
  const auto self = make_self_communicator();
  Trainer whole(data.run("whole", 2), cpu_backend(), *self);
  std::vector<double> losses;
  for (int step = 0; step < 6; ++step) losses.push_back(whole.train_step().loss);
  const RunConfig config = data.run("resumed", 2);
  {
    Trainer first(config, cpu_backend(), *self);
    for (int step = 0; step < 3; ++step) first.train_step();
    first.save_checkpoint();
  }
  Trainer second(config, cpu_backend(), *self);
  for (std::size_t step = 3; step < 6; ++step) EXPECT_EQ(second.train_step().loss, losses[step]);
  EXPECT_EQ(parameters_of(second), parameters_of(whole));
}

TEST(Trainer, RefusesACheckpointOfAnotherModel) {
  const TinyData data;
  const auto self = make_self_communicator();
  RunConfig config = data.run("run", 2);
  Trainer(config, cpu_backend(), *self).save_checkpoint();
  config.model.main.layers = 1;
  try {
    Trainer other(config, cpu_backend(), *self);
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("model.main.layers: "));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("run.folder"));
  }
}

// A length in tokens is counted in batches of one size; one in steps is not.
TEST(Trainer, RefusesAnotherBatchSizeWhereTheLengthIsInTokens) {
  const TinyData data;
  const auto self = make_self_communicator();
  RunConfig config = data.run("run", 0);
  config.trainer.steps = 0;
  config.trainer.tokens = 4 * config.trainer.batch_tokens;
  Trainer(config, cpu_backend(), *self).save_checkpoint();
  config.trainer.batch_tokens *= 2;
  try {
    Trainer other(config, cpu_backend(), *self);
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("trainer.batch_tokens"));
  }
  config.trainer.tokens = 0;
  config.trainer.steps = 4;
  EXPECT_NO_THROW(Trainer(config, cpu_backend(), *self));
}

TEST(RunConfig, StepsOfAnyLengthInTokens) {
  RunConfig config;
  config.trainer.batch_tokens = 256;
  config.trainer.tokens = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(config.total_steps(), (std::int64_t{1} << 55));
  config.trainer.tokens = 257;
  EXPECT_EQ(config.total_steps(), 2);
}

TEST(MetricsLog, DropsLinesWithoutAStepThatCounts) {
  const TinyData data;
  const auto path = data.folder() / "metrics.jsonl";
  std::ofstream(path) << "{\"step\":1}\n{\"step\":\"x\"}\nnot json\n{\"loss\":1}\n{\"step\":3}\n";
  { MetricsLog log(path, 2); }
  std::ifstream lines(path);
  std::string first, second;
  EXPECT_TRUE(std::getline(lines, first));
  EXPECT_EQ(first, "{\"step\":1}");
  EXPECT_FALSE(std::getline(lines, second)) << second;
}

// A file whose reading fails (here by EIO) is not taken for an empty one.
TEST(MetricsLog, LeavesAFileThatItCannotRead) {
  const TinyData data;
  const auto path = data.folder() / "metrics.jsonl";
  std::filesystem::create_symlink("/proc/self/mem", path);
  try {
    MetricsLog log(path, 2);
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("what it holds cannot be read"));
  }
  EXPECT_TRUE(std::filesystem::is_symlink(path));
}

TEST(Trainer, ASignalSavesAndStops) {
  const TinyData data;
  const auto self = make_self_communicator();
  const RunConfig config = data.run("run", 2);
  std::filesystem::create_directories(config.run.folder);
  Trainer trainer(config, cpu_backend(), *self);
  ASSERT_EQ(kill(getpid(), SIGTERM), 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // another thread takes it
  const TrainingResult result = trainer.run();
  EXPECT_TRUE(result.stopped_early);
  EXPECT_EQ(result.step, 1);
  EXPECT_EQ(read_manifest(find_checkpoint(config.run.folder).value()).step, 1);
}

TEST(Trainer, ANotFiniteStepIsSkippedOrStops) {
  const TinyData data;
  const auto self = make_self_communicator();
  RunConfig config = data.run("run", 2);
  Trainer trainer(config, cpu_backend(), *self);
  trainer.main_parameters().value(0).span<float>()[3 * 16] = std::numeric_limits<float>::infinity();
  const auto before = parameters_of(trainer);
  EXPECT_TRUE(trainer.train_step().skipped());
  EXPECT_EQ(parameters_of(trainer), before);
  config.trainer.on_bad_step = BadStep::stop;
  std::filesystem::create_directories(config.run.folder);
  Trainer stopping(config, cpu_backend(), *self);
  stopping.main_parameters().value(0).span<float>()[3 * 16] =
      std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(stopping.run(), std::runtime_error);
}

TEST(Trainer, SoManyBadStepsInARowEndTheRun) {
  const TinyData data;
  const auto self = make_self_communicator();
  RunConfig config = data.run("run", 10);
  config.trainer.bad_steps_in_a_row = 3;
  config.checkpoint.every = 1;
  std::filesystem::create_directories(config.run.folder);
  Trainer trainer(config, cpu_backend(), *self);
  trainer.train_step();
  trainer.save_checkpoint();
  const auto good = parameters_of(trainer);
  Trainer resumed(config, cpu_backend(), *self);
  ASSERT_EQ(parameters_of(resumed), good);
  resumed.main_parameters().value(0).span<float>()[3 * 16] = std::numeric_limits<float>::infinity();
  try {
    resumed.run();
    FAIL() << "ten bad steps were run";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("step 4: "));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("3 bad steps in a row"));
  }
  // What was saved before is not replaced by checkpoints of bad steps.
  EXPECT_EQ(read_manifest(find_checkpoint(config.run.folder).value()).step, 1);
}

TEST(Trainer, BakedAgreesWithLive) {
  const TinyData data;
  const auto self = make_self_communicator();
  const RunConfig config = data.run("run", 2);
  Trainer trainer(config, cpu_backend(), *self);
  for (int step = 0; step < 6; ++step) trainer.train_step();
  trainer.save_checkpoint();
  BakeOptions options;
  options.source = config.run.folder;
  options.bundle = data.folder() / "bundle";
  bake_bundle(options, cpu_backend(), *self);
  LoadedModel live = load_model(config.run.folder, cpu_backend(), 4, {}, *self);
  LoadedModel baked = load_model(options.bundle, cpu_backend(), 4, {}, *self);
  const TokenCorpus corpus({data.folder() / "validation.h5"});
  const std::vector<std::int32_t> token_bytes(256, 1);
  auto loss = [&](LoadedModel& model) {
    return evaluate(corpus, model.matcher.get(), *model.main_model, model.source.get(), 16,
                    token_bytes, {.sequence_length = 32, .microbatch_sequences = 4}, *self,
                    model.grids->main);
  };
  const EvaluationResult of_live = loss(live), of_baked = loss(baked);
  EXPECT_GT(of_live.matched, of_live.tokens / 4);
  EXPECT_EQ(of_live.matched, of_baked.matched);
  EXPECT_NEAR(of_baked.loss / of_live.loss, 1, 1e-6);
  EXPECT_NEAR(of_live.loss / trainer.evaluate_validation().loss, 1, 1e-6);
  EXPECT_NEAR(of_live.bits_per_byte, of_live.loss / std::log(2), 1e-9);

  // The same text from both, one token at a time as in one pass.
  const std::vector<std::vector<std::int32_t>> prompts = {{1, 2, 3, 1, 2}, {7, 1, 2}};
  GenerationOptions generation{.max_tokens = 20, .sampling = {.temperature = 0}};
  const auto from_live = generate(live, prompts, generation).tokens;
  EXPECT_EQ(from_live[0].size(), 20U);
  EXPECT_EQ(from_live, generate(baked, prompts, generation).tokens);
  generation.prefill_chunk = 2;
  EXPECT_EQ(from_live, generate(live, prompts, generation).tokens);
  generation.max_tokens = 1000;
  EXPECT_EQ(generate(baked, prompts, generation).tokens[0].size(), 32U - 5U);
}

TEST(LoadedModel, AContextBeyondTheMemoryIsRefusedBeforeItIsTaken) {
  const TinyData data;
  const auto self = make_self_communicator();
  RunConfig config = data.run("run", 2);
  config.model.main.position = config.model.fgram.position = PositionKind::rope;
  Trainer trainer(config, cpu_backend(), *self);
  trainer.save_checkpoint();
  BakeOptions options;
  options.source = config.run.folder;
  options.bundle = data.folder() / "bundle";
  bake_bundle(options, cpu_backend(), *self);
  nlohmann::json description = read_json_file(options.bundle / "bundle.json");
  description["model"]["main"]["context"] = kMostContext;
  std::ofstream(options.bundle / "bundle.json") << description.dump();
  try {
    load_model(options.bundle, cpu_backend(), 1 << 12, {}, *self);  // of at least 4 TB
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("bundle.json: model.main.context: 16777216"));
  }
}

TEST(Sampler, HonoursItsOptions) {
  const std::vector<float> logits = {0.0F, 3.0F, 1.0F, 2.0F};
  EXPECT_EQ(Sampler({.temperature = 0}).draw(logits), 1);
  Sampler two({.top_k = 2}), nucleus({.top_p = 0.6}), all({.seed = 9}), same({.seed = 9});
  int counts[4] = {}, of_two[4] = {};
  for (int i = 0; i < 20000; ++i) {
    const auto drawn = all.draw(logits);
    EXPECT_EQ(same.draw(logits), drawn);
    ++counts[drawn];
    ++of_two[two.draw(logits)];
    EXPECT_EQ(nucleus.draw(logits), 1);
  }
  EXPECT_EQ(of_two[0] + of_two[2], 0);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit);
  for (std::size_t i = 0; i < 4; ++i) {
    const double p = std::exp(logits[i]) / sum;  // within five standard deviations
    EXPECT_NEAR(counts[i], 20000 * p, 5 * std::sqrt(20000 * p * (1 - p))) << i;
  }
  EXPECT_THROW(Sampler({.top_p = 0}), InputError);
}

// The first update of AdamW without weight decay moves each value by the learning rate.
TEST(Trainer, TheFgramModelHasALearningRateOfItsOwn) {
  const TinyData data;
  const auto self = make_self_communicator();
  RunConfig config = data.run("run", 2);
  config.optimizer.weight_decay = 0;
  const auto moves = [&](double ratio) {
    config.optimizer.fgram_lr_ratio = ratio;
    Trainer trainer(config, cpu_backend(), *self);
    const std::vector<float> before = parameters_of(trainer);
    const auto main = static_cast<std::size_t>(trainer.main_parameters().elements());
    trainer.train_step();
    const std::vector<float> after = parameters_of(trainer);
    float most_main = 0, most_fgram = 0;
    for (std::size_t i = 0; i < after.size(); ++i) {
      float& most = i < main ? most_main : most_fgram;
      most = std::max(most, std::abs(after[i] - before[i]));
    }
    return std::pair(most_main, most_fgram);
  };
  const auto lr = static_cast<float>(learning_rate(config, 0));
  for (const float ratio : {1.0F, 0.25F}) {
    const auto [main, fgram] = moves(ratio);
    EXPECT_NEAR(main, lr, 0.01 * lr) << ratio;
    EXPECT_NEAR(fgram, lr * ratio, 0.01 * lr * ratio) << ratio;
  }
}

TEST(LearningRate, Schedules) {
  RunConfig config;
  config.trainer.steps = 100;
  config.optimizer.peak_lr = 1;
  config.optimizer.warmup_steps = 10;
  config.optimizer.final_lr_ratio = 0.1;
  EXPECT_DOUBLE_EQ(learning_rate(config, 0), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(config, 9), 1);
  EXPECT_DOUBLE_EQ(learning_rate(config, 10), 1);
  EXPECT_DOUBLE_EQ(learning_rate(config, 55), 0.55);
  EXPECT_NEAR(learning_rate(config, 100), 0.1, 1e-12);
  config.optimizer.schedule = Schedule::wsd;
  EXPECT_DOUBLE_EQ(learning_rate(config, 80), 1);
  EXPECT_DOUBLE_EQ(learning_rate(config, 90), 0.55);
  config.optimizer.schedule = Schedule::constant;
  EXPECT_DOUBLE_EQ(learning_rate(config, 99), 1);
}

}  // namespace
}  // namespace scone
