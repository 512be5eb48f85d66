#include "checkpoint/model_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/safetensors.h"
#include "parallel/error.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST(ModelExport, RoundTripIsBitExact) {
  for (const bool baseline : {false, true}) {
    const TemporaryFolder folder;
    const TinyRun run(folder.path(), baseline);
    const ExportResult result = export_model(run.folder, folder.path() / "exported");
    EXPECT_EQ(result.checkpoint, run.checkpoint);
    EXPECT_EQ(result.step, 100);
    const fs::path imported = import_model(folder.path() / "exported", folder.path() / "new");
    EXPECT_EQ(imported, folder.path() / "new/checkpoints/step-00000000");
    EXPECT_TRUE(checkpoint_problems(imported).empty());
    const CheckpointManifest manifest = read_manifest(imported);
    EXPECT_EQ(manifest.step, 0);
    EXPECT_EQ(manifest.tokens, 0);
    EXPECT_EQ(manifest.model, read_manifest(run.checkpoint).model);
    for (const ParameterSet* set : {&run.main_parameters, &run.fgram_parameters}) {
      for (std::size_t i = 0; i < set->size(); ++i) {
        const std::string& name = set->spec(i).name;
        const Shape& shape = set->spec(i).shape;
        const Tensor value = Tensor::zeros(shape), m = Tensor::zeros(shape),
                     v = Tensor::zeros(shape);
        for (float& x : m.span<float>()) x = 1;
        for (float& x : v.span<float>()) x = 1;
        read_tensors(imported, std::vector<NamedTensor>{{"parameters/" + name, value},
                                                        {"adam_m/" + name, m},
                                                        {"adam_v/" + name, v}});
        const auto expected = set->value(i).span<float>();
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), value.data<float>())) << name;
        for (const float x : m.span<float>()) ASSERT_EQ(x, 0);
        for (const float x : v.span<float>()) ASSERT_EQ(x, 0);
      }
    }
    export_model(folder.path() / "new", folder.path() / "again");
    int files = 0;
    for (const auto& entry : fs::directory_iterator(folder.path() / "exported")) {
      const std::string name = entry.path().filename().string();
      if (name == "config.json") continue;  // another step
      EXPECT_EQ(read_bytes(entry.path()), read_bytes(folder.path() / "again" / name)) << name;
      ++files;
    }
    EXPECT_EQ(files, baseline ? 2 : 4);
  }
}

TEST(ModelExport, NamesAndShapesAreThoseOfLlama) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path());
  export_model(run.checkpoint, folder.path() / "exported");
  const auto shape_in = [&](const char* file, const std::string& name) {
    const SafetensorsFile tensors(folder.path() / "exported" / file);
    for (const SafetensorsEntry& entry : tensors.entries()) {
      if (entry.name == name) return entry.shape;
    }
    return Shape{};
  };
  EXPECT_EQ(shape_in("model.safetensors", "model.embed_tokens.weight"), (Shape{256, 16}));
  EXPECT_EQ(shape_in("model.safetensors", "model.layers.1.self_attn.k_proj.weight"),
            (Shape{16, 16}));
  EXPECT_EQ(shape_in("fgram_model.safetensors", "model.embed_positions.weight"), (Shape{4, 16}));
  EXPECT_EQ(shape_in("fgram_model.safetensors", "model.layers.1.mlp.down_proj.weight"),
            (Shape{16, 32}));
  const auto config = read_json_file(folder.path() / "exported/config.json");
  EXPECT_EQ(config.at("hidden_size"), 16);
  EXPECT_EQ(config.at("fgram_model").at("max_position_embeddings"), 4);
  EXPECT_EQ(config.at("fgrams").at("size"), 600);
}

TEST(ModelExport, RefusesWhatIsDamagedOrInTheWay) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path());
  const fs::path exported = folder.path() / "exported";
  export_model(run.folder, exported);
  const auto message = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const InputError& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  EXPECT_THAT(message([&] { export_model(run.folder, exported); }), HasSubstr("exists already"));
  EXPECT_THAT(message([&] { export_model(exported, folder.path() / "x"); }),
              HasSubstr("no valid checkpoint"));
  EXPECT_THAT(message([&] { import_model(exported, run.folder); }),
              HasSubstr("holds checkpoints already"));
  EXPECT_THAT(message([&] { import_model(run.checkpoint, folder.path() / "x"); }),
              HasSubstr("config.json"));
  for (const char* name :
       {"model.safetensors", "fgram_model.safetensors", "tokenizer.json", "fgrams.h5"}) {
    flip_byte(exported / name, static_cast<std::int64_t>(fs::file_size(exported / name)) - 3);
    EXPECT_THAT(message([&] { import_model(exported, folder.path() / "x"); }), HasSubstr(name));
    flip_byte(exported / name, static_cast<std::int64_t>(fs::file_size(exported / name)) - 3);
  }
  EXPECT_FALSE(fs::exists(folder.path() / "x"));
  EXPECT_NO_THROW(import_model(exported, folder.path() / "x"));
}

}  // namespace
}  // namespace scone
