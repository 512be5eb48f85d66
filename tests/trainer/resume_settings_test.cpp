#include "trainer/resume_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "model/model_config.h"
#include "parallel/error.h"

namespace scone {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

ModelConfig small_model(std::int64_t width) {
  ModelConfig model;
  model.vocabulary_size = 300;
  model.main = {.width = width, .layers = 2, .heads = 4, .ffw = 4 * width, .context = 64};
  model.fgram = model.main;
  model.fgram.layers = 1;
  model.fgram.context = 5;
  return model;
}

CheckpointManifest small_run(const ModelConfig& model) {
  CheckpointManifest manifest;
  manifest.model = model;
  manifest.run = {{"seed", 1},
                  {"sequence_length", 64},
                  {"batch_tokens", 512},
                  {"attention_across_documents", false}};
  manifest.data = {{"tokenizer_fingerprint", "aa"}};
  manifest.fgrams = {
      {"vocabulary", "/data/f.h5"}, {"size", 300}, {"max_length", 5}, {"fingerprint", "f1"}};
  return manifest;
}

/// The lines that name keys, or the whole message where it is another; empty: nothing is refused.
std::string differences(const CheckpointManifest& own,
                        const CheckpointManifest& saved = small_run(small_model(16)),
                        bool length_in_tokens = false) {
  try {
    check_settings("run/checkpoints/step-00000005", saved, own, length_in_tokens);
    return "";
  } catch (const InputError& error) {
    const std::string message = error.what();
    const std::string head =
        "run/checkpoints/step-00000005: was written by a run with other settings; set them back, "
        "or give this run a run.folder of its own:\n";
    return message.starts_with(head) ? message.substr(head.size()) : message;
  }
}

std::string model_difference(const std::function<void(ModelConfig&)>& change) {
  ModelConfig model = small_model(16);
  change(model);
  return differences(small_run(model));
}

TEST(ResumeSettings, TheSameRunAndWhatOnlyBoundsMemoryArePassed) {
  EXPECT_EQ(differences(small_run(small_model(16))), "");
  EXPECT_EQ(model_difference([](ModelConfig& model) {
              model.fgram_chunk_nodes = 7;
              model.fgram_recompute = FgramRecompute::none;
            }),
            "");
}

TEST(ResumeSettings, TheKeyThatWasChangedIsNamedNotThoseThatFollow) {
  EXPECT_EQ(differences(small_run(small_model(32))),
            "  model.main.width: 16 in the checkpoint, 32 in this run");
  EXPECT_EQ(model_difference([](ModelConfig& model) { model.main.ffw = model.fgram.ffw = 50; }),
            "  model.main.ffw: 64 in the checkpoint, 50 in this run");
  EXPECT_EQ(model_difference([](ModelConfig& model) { model.fgram.ffw = 50; }),
            "  model.fgram.ffw: 64 in the checkpoint, 50 in this run");
  EXPECT_EQ(model_difference([](ModelConfig& model) {
              model.main.norm = model.fgram.norm = NormKind::rmsnorm;
              model.fgram.layers = 3;
              model.combine = CombineKind::add;
              model.tie_embeddings = false;
            }),
            "  model.main.norm: layernorm in the checkpoint, rmsnorm in this run\n"
            "  model.main.tie_embeddings: true in the checkpoint, false in this run\n"
            "  model.fgram.layers: 1 in the checkpoint, 3 in this run\n"
            "  model.fgram.combine: replace in the checkpoint, add in this run");
  // A width changed with an ffw of its own: both were set.
  ModelConfig wide = small_model(32);
  wide.main.ffw = wide.fgram.ffw = 100;
  EXPECT_EQ(differences(small_run(wide)),
            "  model.main.width: 16 in the checkpoint, 32 in this run\n"
            "  model.main.ffw: 64 in the checkpoint, 100 in this run");
}

TEST(ResumeSettings, TheFgramsKeysAreToldFromTheFile) {
  CheckpointManifest own = small_run(small_model(16));
  own.fgrams["fingerprint"] = "f2";
  EXPECT_EQ(
      differences(own),
      "  fgrams.vocabulary: /data/f.h5 with fingerprint f1 in the checkpoint, /data/f.h5 with "
      "fingerprint f2 in this run");
  own.fgrams["size"] = 200;
  EXPECT_EQ(differences(own), "  fgrams.size: 300 in the checkpoint, 200 in this run");
  own.fgrams["vocabulary"] = "/data/g.h5";
  EXPECT_EQ(differences(own),
            "  fgrams.vocabulary: /data/f.h5 in the checkpoint, /data/g.h5 in this run\n"
            "  fgrams.size: 300 in the checkpoint, 200 in this run");
  ModelConfig shorter = small_model(16);
  shorter.fgram.context = 3;
  own = small_run(shorter);
  own.fgrams["fingerprint"] = "f2";
  own.fgrams["max_length"] = 3;
  EXPECT_EQ(differences(own), "  fgrams.max_length: 5 in the checkpoint, 3 in this run");
  // The same f-grams elsewhere.
  own = small_run(small_model(16));
  own.fgrams["vocabulary"] = "/moved/f.h5";
  EXPECT_EQ(differences(own), "");
}

TEST(ResumeSettings, AnotherTokenizerIsOfTheData) {
  ModelConfig model = small_model(16);
  model.vocabulary_size = 400;
  CheckpointManifest own = small_run(model);
  own.data["tokenizer_fingerprint"] = "bb";
  EXPECT_EQ(differences(own),
            "  data.train: tokens of tokenizer aa in the checkpoint, tokens of tokenizer bb in "
            "this run");
}

TEST(ResumeSettings, WhatTheRunSetsForItself) {
  CheckpointManifest own = small_run(small_model(16));
  own.run = {{"seed", 2},
             {"sequence_length", 32},
             {"batch_tokens", 1024},
             {"attention_across_documents", true}};
  const std::string always = "  run.seed: 1 in the checkpoint, 2 in this run\n";
  const CheckpointManifest saved = small_run(small_model(16));
  EXPECT_THAT(differences(own, saved, false),
              AllOf(HasSubstr(always), HasSubstr("trainer.sequence_length: 64 in"),
                    HasSubstr("data.attention_across_documents: false in"),
                    Not(HasSubstr("batch_tokens"))));
  EXPECT_THAT(differences(own, saved, true), HasSubstr("trainer.batch_tokens: 512 in the"));
  CheckpointManifest imported = saved;
  imported.run = {{"imported", true}};
  EXPECT_EQ(differences(own, imported), "");
  own.fgrams["fingerprint"] = "f2";
  EXPECT_EQ(differences(own, imported), "");
  ModelConfig other = small_model(16);
  other.fgram.context = 3;
  EXPECT_THAT(differences(small_run(other), imported),
              HasSubstr("fgrams.max_length: 5 in the checkpoint, 3 in this run"));
}

TEST(ResumeSettings, OfOneWithoutAnFgramModelTheMainModelCounts) {
  CheckpointManifest baseline = small_run(small_model(16));
  baseline.model["fgram"]["layers"] = 0;
  baseline.model["combine"] = "add";
  baseline.fgrams = nullptr;
  EXPECT_EQ(differences(small_run(small_model(16)), baseline), "");
  EXPECT_EQ(differences(baseline, small_run(small_model(16))), "");
  EXPECT_THAT(differences(small_run(small_model(32)), baseline),
              HasSubstr("model.main.width: 16 in the checkpoint, 32 in this run"));
}

}  // namespace
}  // namespace scone
