// Checkpoints and bundles on the CUDA backend, against the processor's: on a GPU, or with kernels
// on the host.

#include <gtest/gtest.h>

#include <vector>

#include "checkpoint/bake.h"
#include "model/cuda_test.h"
#include "tiny_data.h"
#include "trainer/evaluation.h"
#include "trainer/generation.h"
#include "trainer/loaded_model.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

EvaluationResult evaluate_on(const TinyData& data, LoadedModel& model, Communicator& self) {
  const TokenCorpus corpus({data.folder() / "validation.h5"});
  const std::vector<std::int32_t> token_bytes(256, 1);
  return evaluate(corpus, model.matcher.get(), *model.main_model, model.source.get(), 16,
                  token_bytes, {.sequence_length = 32, .microbatch_sequences = 4, .tokens = 400},
                  self, model.grids->main);
}

TEST(CudaLoading, EvaluatesBakesAndGeneratesAsTheProcessorDoes) {
  const TinyData data;
  const auto self = make_self_communicator();
  const RunConfig config = data.run("run", 2);
  {
    Trainer trainer(config, cpu_backend(), *self);
    for (int step = 0; step < 4; ++step) trainer.train_step();
    trainer.save_checkpoint();
    trainer.finish_checkpoint();
  }
  const std::vector<std::vector<std::int32_t>> prompts = {{1, 2, 3, 1, 2}, {7, 1, 2}};
  const GenerationOptions generation{.max_tokens = 5, .sampling = {.temperature = 0}};
  Backend* const backends[] = {&cpu_backend(), &test_cuda_backend()};
  std::vector<double> losses;
  std::vector<std::vector<std::vector<std::int32_t>>> texts;
  for (Backend* const backend : backends) {
    BakeOptions options;
    options.source = config.run.folder;
    options.bundle = data.folder() / ("bundle-of-" + std::to_string(losses.size()));
    bake_bundle(options, *backend, *self);
    for (const auto& path : {std::filesystem::path(config.run.folder), options.bundle}) {
      LoadedModel model = load_model(path, *backend, 4, {}, *self);
      losses.push_back(evaluate_on(data, model, *self).loss);
      texts.push_back(generate(model, prompts, generation).tokens);
    }
  }
  for (std::size_t i = 1; i < losses.size(); ++i) {
    EXPECT_NEAR(losses[i] / losses[0], 1, 1e-5) << i;
    EXPECT_EQ(texts[i], texts[0]) << i;
  }
}

}  // namespace
}  // namespace scone
