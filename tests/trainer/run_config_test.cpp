#include "trainer/run_config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "parallel/error.h"
#include "trainer/built_with.h"
#include "trainer/config_schema.h"

namespace scone {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const char* const kSmall =
    "run:\n"                   // 1
    "  folder: runs/small\n"   // 2
    "data:\n"                  // 3
    "  train: shards/train\n"  // 4
    "model:\n"                 // 5
    "  main:\n"                // 6
    "    width: 64\n"          // 7
    "    layers: 2\n"          // 8
    "    heads: 4\n"           // 9
    "    context: 128\n"       // 10
    "trainer:\n"               // 11
    "  steps: 10\n"            // 12
    "  batch_tokens: 2Ki\n";   // 13

class RunConfigTest : public ::testing::Test {
 protected:
  RunConfigTest() {
    path_ = std::filesystem::temp_directory_path() /
            ("scone_run_config_" + std::to_string(getpid()) + ".yaml");
  }
  ~RunConfigTest() override { std::filesystem::remove(path_); }

  RunConfig load(const std::string& text, const std::vector<std::string>& overrides = {},
                 int ranks = 1) {
    std::ofstream(path_) << text;
    return load_run_config(path_, overrides, ranks);
  }
  /// The error's message with the file's path as FILE; "" where there is none.
  std::string error(const std::string& text, const std::vector<std::string>& overrides = {},
                    int ranks = 1) {
    try {
      load(text, overrides, ranks);
    } catch (const InputError& error) {
      std::string message = error.what();
      const auto at = message.find(path_.string());
      if (at != std::string::npos) message.replace(at, path_.string().size(), "FILE");
      return message;
    }
    return "";
  }
  std::string override_error(const std::string& text, int ranks = 1) {
    return error(kSmall, {text}, ranks);
  }

  std::filesystem::path path_;
};

TEST_F(RunConfigTest, DefaultsFollowFromTheGivenKeys) {
  const RunConfig config = load(kSmall, {}, 2);
  EXPECT_EQ(config.data.train, std::vector<std::string>{"shards/train"});
  EXPECT_EQ(config.model.main.ffw, 256);
  EXPECT_EQ(config.model.fgram.width, 64);
  EXPECT_EQ(config.model.fgram.heads, 4);
  EXPECT_EQ(config.model.fgram.ffw, 256);
  EXPECT_EQ(config.model.fgram.layers, 0);
  EXPECT_EQ(config.trainer.batch_tokens, 2048);
  EXPECT_EQ(config.trainer.sequence_length, 128);
  EXPECT_EQ(config.trainer.microbatch_tokens, 8 * 128);  // 16 sequences for two ranks
  EXPECT_EQ(load(kSmall, {}, 4).trainer.microbatch_tokens, 4 * 128);
  EXPECT_EQ(config.total_steps(), 10);
}

TEST_F(RunConfigTest, FgramModelTakesTheMainModelsKindsUnlessGiven) {
  const RunConfig config = load(
      kSmall, {"model.main.norm=rmsnorm", "model.main.bias=false", "model.fgram.layers=3",
               "model.main.position=rope", "model.main.activation=swiglu",
               "model.fgram.position=learned", "model.fgram.ffw=96", "fgrams.vocabulary=f.h5"});
  EXPECT_EQ(config.model.fgram.norm, NormKind::rmsnorm);
  EXPECT_EQ(config.model.fgram.activation, ActivationKind::swiglu);
  EXPECT_EQ(config.model.fgram.position, PositionKind::learned);
  EXPECT_EQ(config.model.fgram.ffw, 96);
  EXPECT_FALSE(config.model.fgram.bias);
}

TEST_F(RunConfigTest, OverridesReplaceTheFilesValues) {
  const RunConfig config =
      load(kSmall, {"trainer.steps=0", "trainer.tokens=10M", "data.train=[a.h5, 'b c']",
                    "optimizer.peak_lr=2e-3", "optimizer.betas=[0.8,0.9]", "optimizer.schedule=wsd",
                    "trainer.on_bad_step=stop"});
  EXPECT_EQ(config.trainer.tokens, 10'000'000);
  EXPECT_EQ(config.total_steps(), 4883);  // 10M / 2048, rounded up
  EXPECT_EQ(config.data.train, (std::vector<std::string>{"a.h5", "b c"}));
  EXPECT_EQ(config.optimizer.peak_lr, 2e-3);
  EXPECT_EQ(config.optimizer.betas, (std::vector<double>{0.8, 0.9}));
  EXPECT_EQ(config.optimizer.schedule, Schedule::wsd);
  EXPECT_EQ(config.trainer.on_bad_step, BadStep::stop);
}

TEST_F(RunConfigTest, PrintedConfigurationReadsBackEqual) {
  const RunConfig config =
      load(kSmall, {"run.folder=\"a # b: \\\"c\\\"\"", "run.seed=77",
                    "optimizer.peak_lr=0.00012345678901234567", "data.train=[x, 'null', '7', '-']",
                    "model.fgram.layers=2", "model.fgram.combine=add", "model.fgram.recompute=none",
                    "model.main.tie_embeddings=false", "fgrams.size=10M", "fgrams.vocabulary=f.h5",
                    "model.fgram.heads=2", "logging.every=3"});
  const std::string yaml = to_yaml(config);
  const RunConfig again = load(yaml);
  EXPECT_EQ(to_yaml(again), yaml);
  EXPECT_EQ(again.run.folder, "a # b: \"c\"");
  EXPECT_EQ(again.data.train, (std::vector<std::string>{"x", "null", "7", "-"}));
  EXPECT_EQ(again.optimizer.peak_lr, config.optimizer.peak_lr);
  EXPECT_EQ(again.model.fgram.heads, 2);
  EXPECT_EQ(again.model.combine, CombineKind::add);
  EXPECT_FALSE(again.model.tie_embeddings);
}

TEST_F(RunConfigTest, EveryKeyIsListedOnceWithACommentAndPrinted) {
  const std::string yaml = to_yaml(load(kSmall));
  std::set<std::string> keys;
  for (const ConfigField& field : config_fields()) {
    EXPECT_TRUE(keys.insert(field.key).second) << field.key;
    EXPECT_FALSE(field.comment.empty()) << field.key;
    const std::string name = field.key.substr(field.key.rfind('.') + 1);
    EXPECT_THAT(yaml, HasSubstr("  " + name + ": "));
  }
}

TEST_F(RunConfigTest, UnknownKeysNameTheNearestOne) {
  EXPECT_EQ(error(std::string(kSmall) + "  stesp: 3\n"),
            "FILE:14: trainer.stesp: unknown key; the nearest valid key is trainer.steps");
  EXPECT_EQ(error(std::string(kSmall) + "trainr:\n  steps: 3\n"),
            "FILE:14: trainr: unknown key; the nearest valid key is trainer");
  EXPECT_THAT(override_error("optimizer.lr=1"),
              HasSubstr("nearest valid key is optimizer.peak_lr"));
  EXPECT_THAT(override_error("model.width=64"), HasSubstr("nearest valid key is model.main.width"));
  EXPECT_THAT(override_error("model.main=64"), HasSubstr("a section"));
  EXPECT_THAT(override_error("steps"), HasSubstr("expected key=value"));
}

TEST_F(RunConfigTest, WrongTypesNameFileLineAndKey) {
  std::string text = kSmall;
  text.replace(text.find("width: 64"), 9, "width: abc");
  EXPECT_EQ(error(text), "FILE:7: model.main.width: expected an integer, found 'abc'");
  EXPECT_EQ(error(std::string(kSmall) + "checkpoint: 3\n"),
            "FILE:14: checkpoint: expected a section of keys, found a value");
  EXPECT_EQ(override_error("model.main.layers=-2"),
            "command line: model.main.layers: expected an integer of at least 0, found '-2'");
  EXPECT_THAT(override_error("model.main.layers=2.5"), HasSubstr("expected an integer"));
  EXPECT_THAT(override_error("model.main.bias=yes"), HasSubstr("expected true or false"));
  EXPECT_THAT(override_error("optimizer.peak_lr=fast"),
              HasSubstr("expected a number, found 'fast'"));
  EXPECT_THAT(override_error("optimizer.clip=.inf"), HasSubstr("expected a number"));
  EXPECT_THAT(override_error("optimizer.betas=0.9"), HasSubstr("expected a list of numbers"));
  EXPECT_THAT(override_error("model.main.norm=batch"),
              HasSubstr("expected one of layernorm, rmsnorm, found 'batch'"));
  EXPECT_THAT(override_error("run.folder="), HasSubstr("expected text, found nothing"));
  EXPECT_THAT(override_error("data.prefetch=3G"), HasSubstr("at most 2147483647"));
}

TEST_F(RunConfigTest, UnreadableFilesAreErrors) {
  EXPECT_THAT(error(""), HasSubstr("an empty file"));
  EXPECT_THAT(error("run: [\n"), AllOf(HasSubstr("FILE:"), HasSubstr("not valid YAML")));
  EXPECT_EQ(error(std::string(kSmall) + "  steps: 11\n"),
            "FILE:14: trainer.steps: given twice, first in line 12; remove one");
  EXPECT_EQ(error(std::string(kSmall) + "trainer.steps: 11\n"),
            "FILE:14: trainer.steps: given twice, first in line 12; remove one");
  EXPECT_EQ(error(std::string(kSmall) + "---\nbad_key: 1\n"),
            "FILE:15: a second document, after ---, would not be read; remove it");
  std::filesystem::remove(path_);
  EXPECT_THROW(load_run_config(path_, {}, 1), InputError);
  EXPECT_THROW(load_run_config(std::filesystem::temp_directory_path(), {}, 1), InputError);
}

TEST_F(RunConfigTest, MissingKeysAreAllNamed) {
  EXPECT_EQ(error("run:\n  folder: x\n"),
            "FILE: required keys are missing: data.train, model.main.width, model.main.layers, "
            "model.main.heads, model.main.context, trainer.batch_tokens");
}

TEST_F(RunConfigTest, ImpossibleCombinationsNameTheMend) {
  EXPECT_EQ(override_error("model.main.heads=5"),
            "command line: model.main.heads: 5 heads do not divide model.main.width 64; give a "
            "divisor of it");
  EXPECT_THAT(error(kSmall, {"model.main.heads=64", "model.main.position=rope"}),
              HasSubstr("rope needs an even width of a head, found 1"));
  EXPECT_THAT(override_error("trainer.tokens=5M"), HasSubstr("found both"));
  EXPECT_THAT(override_error("trainer.steps=0"), HasSubstr("found neither"));
  EXPECT_THAT(override_error("trainer.batch_tokens=300"),
              HasSubstr("multiple of trainer.sequence_length 128, found 300; the nearest are 256 "
                        "and 384"));
  EXPECT_THAT(override_error("trainer.batch_tokens=0"), HasSubstr("the nearest is 128"));
  EXPECT_THAT(override_error("trainer.microbatch_tokens=130"),
              HasSubstr("the nearest are 128 and 256"));
  EXPECT_THAT(override_error("trainer.sequence_length=256"),
              HasSubstr("longer than model.main.context 128"));
  EXPECT_EQ(override_error("trainer.batch_tokens=2Ki", 16), "");
  EXPECT_THAT(override_error("trainer.batch_tokens=2Ki", 17),
              HasSubstr("16 sequences of 128 for 17 data-parallel ranks (17 ranks / "
                        "parallel.main.tp 1); give at least 2176 tokens"));
  EXPECT_THAT(override_error("model.fgram.layers=1"), HasSubstr("fgrams.vocabulary: needed where"));
  EXPECT_THAT(override_error("fgrams.vocabulary=f.h5"), HasSubstr("model.fgram.layers is 0"));
  EXPECT_THAT(override_error("optimizer.betas=[0.9]"), HasSubstr("expected two numbers"));
  EXPECT_THAT(override_error("optimizer.betas=[0.9, 1]"), HasSubstr("found [0.9, 1]"));
  // 1 as a float, in which the optimizer computes.
  EXPECT_THAT(override_error("optimizer.betas=[0.9, 0.9999999999]"), HasSubstr("expected two"));
  EXPECT_THAT(override_error("data.prefetch=1025"), HasSubstr("expected at most 1024 batches"));
  EXPECT_THAT(override_error("optimizer.peak_lr=0"), HasSubstr("above 0, found 0"));
  EXPECT_THAT(override_error("optimizer.final_lr_ratio=1.5"), HasSubstr("from 0 to 1"));
  EXPECT_THAT(override_error("optimizer.fgram_lr_ratio=0"), HasSubstr("above 0"));
  EXPECT_THAT(override_error("data.train=[]"), HasSubstr("empty list"));
}

TEST_F(RunConfigTest, TrainingDataMayBeAWeightedMixture) {
  const RunConfig one = load(kSmall);
  EXPECT_TRUE(one.data.train_weights.empty());
  const RunConfig mixed =
      load(kSmall, {"data.train=[{path: books, weight: 0.7}, {weight: 3e-1, path: 'the web'}]"});
  EXPECT_EQ(mixed.data.train, (std::vector<std::string>{"books", "the web"}));
  EXPECT_EQ(mixed.data.train_weights, (std::vector<double>{0.7, 0.3}));
  const RunConfig again = load(to_yaml(mixed));
  EXPECT_EQ(again.data.train, mixed.data.train);
  EXPECT_EQ(again.data.train_weights, mixed.data.train_weights);
  // The last one given counts, whole.
  EXPECT_TRUE(load(to_yaml(mixed), {"data.train=a"}).data.train_weights.empty());

  EXPECT_THAT(override_error("data.train=[{path: a}]"), HasSubstr("found 1 keys"));
  EXPECT_THAT(override_error("data.train=[{path: a, weight: 1}, b]"), HasSubstr("found 'b'"));
  EXPECT_THAT(override_error("data.train=[{path: a, weights: 1}]"), HasSubstr("{path: P"));
  EXPECT_THAT(override_error("data.train=[{path: a, weight: 0}]"), HasSubstr("above 0 for a"));
  EXPECT_THAT(override_error("data.train=[{path: a, weight: x}]"), HasSubstr("a number"));
  EXPECT_THAT(override_error("data.train=[a, {path: b, weight: 1}]"), HasSubstr("data.train"));
  EXPECT_THAT(override_error("data.train={path: a, weight: 1}"), HasSubstr("a section of keys"));
}

TEST_F(RunConfigTest, ImpossibleGridsNameTheNearestValues) {
  EXPECT_EQ(override_error("parallel.main.tp=3", 8),
            "command line: parallel.main.tp: 3 does not divide the 8 ranks; the nearest valid "
            "values are 2 and 4");
  EXPECT_EQ(override_error("parallel.main.tp=8", 8),
            "command line: parallel.main.tp: 8 does not divide model.main.heads 4; the nearest "
            "valid value is 4");
  EXPECT_EQ(error(kSmall, {"model.main.ffw=250", "parallel.main.tp=4"}, 8),
            "command line: parallel.main.tp: 4 does not divide model.main.ffw 250; the nearest "
            "valid value is 2");
  EXPECT_THAT(error(kSmall,
                    {"model.fgram.layers=1", "fgrams.vocabulary=f.h5", "model.fgram.heads=2",
                     "parallel.fgram.tp=4"},
                    4),
              HasSubstr("parallel.fgram.tp: 4 does not divide model.fgram.heads 2; the nearest "
                        "valid value is 2"));
  EXPECT_EQ(error(kSmall, {"parallel.main.tp=4", "trainer.batch_tokens=256"}, 8), "");
  EXPECT_THAT(error(kSmall, {"parallel.main.tp=2", "trainer.batch_tokens=256"}, 8),
              HasSubstr("2 sequences of 128 for 4 data-parallel ranks"));
  EXPECT_THAT(override_error("parallel.main.tp=0"), HasSubstr("expected at least 1, found 0"));
  EXPECT_THAT(override_error("parallel.fgram.tp=0"), HasSubstr("expected at least 1, found 0"));
  EXPECT_THAT(override_error("parallel.main.zero=2"), HasSubstr("expected 0 or 1, found 2"));
  EXPECT_THAT(override_error("parallel.timeout=-1"), HasSubstr("parallel.timeout"));
  EXPECT_THAT(override_error("compute.recompute=layer"),
              HasSubstr("expected one of none, attention, block, found 'layer'"));
}

TEST_F(RunConfigTest, TheMetricsAreAFileOfTheirOwnInTheRunsFolder) {
  for (const char* name : {"config.yaml", "config.yaml.new", "log.txt", "checkpoints", ".lock"})
    EXPECT_EQ(
        override_error(fmt::format("logging.metrics={}", name)),
        fmt::format("command line: logging.metrics: '{}' is another file of the run's folder; "
                    "give a name of its own, such as metrics.jsonl",
                    name));
  for (const char* name : {"../run2/config.yaml", "/dev/null", "a/b", "..", ".", "''", "\"a\\nb\""})
    EXPECT_THAT(override_error(fmt::format("logging.metrics={}", name)),
                HasSubstr("logging.metrics: expected the name of a file in run.folder"));
  EXPECT_EQ(override_error("logging.metrics=losses.jsonl"), "");
}

TEST_F(RunConfigTest, ABadStepsWindowHasADeviation) {
  EXPECT_EQ(override_error("trainer.bad_step_window=1"),
            "command line: trainer.bad_step_window: expected at least 2, found 1");
  EXPECT_EQ(override_error("trainer.bad_step_window=2"), "");
}

TEST_F(RunConfigTest, WhatTheDeviceCannotDoIsRefused) {
  for (const auto& [override, why] : std::vector<std::pair<std::string, std::string>>{
           {"parallel.communicator=nccl", "nccl needs compute.device cuda; use mpi"},
           {"optimizer.stochastic_rounding=true", "compute.dtype is fp32; use false"}}) {
    const std::string key = override.substr(0, override.find('='));
    EXPECT_THAT(override_error(override), AllOf(HasSubstr(key + ": "), HasSubstr(why)));
  }
  EXPECT_THAT(override_error("compute.device=tpu"),
              HasSubstr("expected one of cpu, cuda, found 'tpu'"));
  if (!built_with_cuda()) {
    EXPECT_THAT(override_error("compute.device=cuda"), HasSubstr("this build has no CUDA"));
  }
}

}  // namespace
}  // namespace scone
