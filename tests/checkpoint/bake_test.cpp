#include "checkpoint/bake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <set>

#include "checkpoint/bundle.h"
#include "data/fgram_trie.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

BakeResult bake(const TinyRun& run, const fs::path& bundle, RowType type = RowType::fp32) {
  const auto self = make_self_communicator();
  BakeOptions options;
  options.source = run.folder;
  options.bundle = bundle;
  options.type = type;
  options.block_nodes = 50;
  return bake_bundle(options, cpu_backend(), *self);
}

/// The row of one f-gram, run by itself through the f-gram model.
std::vector<float> live_row(TinyRun& run, const FgramVocabulary& vocabulary, std::int64_t id) {
  FgramModel model(run.config, run.fgram_parameters, whole_token_table(run.main_parameters),
                   cpu_backend(), false);
  const FgramTrie trie = build_fgram_trie(vocabulary, std::span(&id, 1));
  const Tensor rows = Tensor::zeros({trie.size(), run.config.main.width});
  model.forward({trie.token, trie.parent, trie.depth}, rows);
  const auto row = rows.rows(trie.node_of_fgram[0], 1).span<float>();
  return {row.begin(), row.end()};
}

TEST(BakeBlocks, HoldEveryFgramOnceAndWholeSubtrees) {
  const FgramVocabulary vocabulary = random_vocabulary(600, 40, 4, "f");
  for (const std::int64_t nodes : {1, 50, 100000}) {
    const BakeBlocks blocks(vocabulary, nodes);
    std::set<std::int64_t> seen, bigrams;
    for (std::int64_t block = 0; block < blocks.blocks(); ++block) {
      const auto ids = blocks.ids(block);
      ASSERT_FALSE(ids.empty());
      EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
      std::set<std::int64_t> own;
      for (const std::int64_t id : ids) {
        EXPECT_TRUE(seen.insert(id).second);
        own.insert(vocabulary.leading_bigram(id));
      }
      for (const std::int64_t bigram : own) EXPECT_TRUE(bigrams.insert(bigram).second);
      if (own.size() > 1) {
        EXPECT_LE(static_cast<std::int64_t>(ids.size()), nodes);
      }
    }
    EXPECT_EQ(static_cast<std::int64_t>(seen.size()), vocabulary.size());
  }
}

TEST(Bake, RowsAreTheFgramModels) {
  const TemporaryFolder folder;
  TinyRun run(folder.path());
  const BakeResult result = bake(run, folder.path() / "bundle");
  EXPECT_EQ(result.rows, 600);
  EXPECT_EQ(result.step, 100);
  const Bundle bundle = open_bundle(folder.path() / "bundle");
  ASSERT_NE(bundle.table, nullptr);
  std::vector<std::int64_t> ids(600);
  std::iota(ids.begin(), ids.end(), 0);
  const Tensor rows = Tensor::zeros({600, 16});
  bundle.table->lookup(ids, rows);
  double worst = 0, largest = 0;
  for (const std::int64_t id : ids) {
    const auto live = live_row(run, *bundle.vocabulary, id);
    for (std::size_t i = 0; i < live.size(); ++i) {
      const float baked = rows.data<float>()[id * 16 + static_cast<std::int64_t>(i)];
      worst = std::max(worst, static_cast<double>(std::fabs(baked - live[i])));
      largest = std::max(largest, static_cast<double>(std::fabs(live[i])));
    }
  }
  std::printf("baked against live: largest difference %.3g, largest value %.3g\n", worst, largest);
  EXPECT_GT(largest, 0.5);
  EXPECT_LE(worst, 1e-6 * std::max(1.0, largest));
}

TEST(Bake, BytesDoNotDependOnRanks) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path());
  std::string first, first_json;
  for (const int ranks : {1, 2, 3}) {
    const fs::path bundle = folder.path() / ("bundle" + std::to_string(ranks));
    run_as_threads(ranks, [&](Communicator& communicator) {
      BakeOptions options;
      options.source = run.folder;
      options.bundle = bundle;
      options.block_nodes = 50;
      bake_bundle(options, cpu_backend(), communicator);
    });
    const std::string table = read_bytes(bundle / "table/rows.bin");
    const std::string json = read_bytes(bundle / "bundle.json");
    if (ranks == 1) {
      first = table;
      first_json = json;
      EXPECT_EQ(table.size(), 4096U + 600U * 64U);
    }
    EXPECT_TRUE(table == first) << ranks;
    EXPECT_EQ(json, first_json) << ranks;
    EXPECT_FALSE(fs::exists(bundle.string() + ".tmp"));
  }
}

TEST(Bake, SixteenBitRowsAreTheRoundedOnes) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path());
  bake(run, folder.path() / "fp32");
  const Bundle exact = open_bundle(folder.path() / "fp32");
  std::vector<std::int64_t> ids = {599, 0, 17, 17};
  const Tensor expected = Tensor::zeros({4, 16}), rows = Tensor::zeros({4, 16});
  exact.table->lookup(ids, expected);
  for (const auto& [type, epsilon] : {std::pair{RowType::bf16, 0x1p-8}, {RowType::fp16, 0x1p-11}}) {
    const fs::path path = folder.path() / name_of(type);
    bake(run, path, type);
    const Bundle bundle = open_bundle(path);
    bundle.table->lookup(ids, rows);
    for (int i = 0; i < 64; ++i) {
      const double value = expected.data<float>()[i];
      EXPECT_NEAR(rows.data<float>()[i], value, epsilon * std::fabs(value) + 0x1p-25);
    }
  }
}

TEST(Bake, ALargerVocabularyThanTrainedWith) {
  const TemporaryFolder folder;
  TinyRun run(folder.path());
  const FgramVocabulary larger = random_vocabulary(900, 40, 5, run.tokenizer_fingerprint);
  larger.save(folder.path() / "larger.h5");
  const auto self = make_self_communicator();
  BakeOptions options;
  options.source = run.checkpoint;
  options.bundle = folder.path() / "bundle";
  options.vocabulary = folder.path() / "larger.h5";
  EXPECT_EQ(bake_bundle(options, cpu_backend(), *self).rows, 900);
  const Bundle bundle = open_bundle(options.bundle);
  EXPECT_EQ(bundle.vocabulary->max_length(), 4);  // the model's K
  const Tensor row = Tensor::zeros({1, 16});
  for (std::int64_t id = 850; id < 900; ++id) {
    bundle.table->lookup(std::span(&id, 1), row);
    if (larger.length(id) > 4) {
      for (const float value : row.span<float>()) EXPECT_EQ(value, 0.0F);
    } else {
      const auto live = live_row(run, *bundle.vocabulary, id);
      for (int i = 0; i < 16; ++i) {
        EXPECT_NEAR(row.data<float>()[i], live[static_cast<std::size_t>(i)], 4e-6);
      }
    }
  }
  random_vocabulary(50, 40, 3, "another").save(folder.path() / "foreign.h5");
  options.vocabulary = folder.path() / "foreign.h5";
  options.overwrite = true;
  EXPECT_THROW(bake_bundle(options, cpu_backend(), *self), InputError);
  EXPECT_TRUE(bundle_problems(options.bundle).empty());  // the old one is untouched
}

TEST(Bake, RefusesAndLeavesNothingHalfWritten) {
  const TemporaryFolder folder;
  TinyRun run(folder.path());
  const fs::path bundle = folder.path() / "bundle";
  fs::create_directories(folder.path() / "bundle.tmp/table");  // of a bake that was killed
  bake(run, bundle);
  EXPECT_THROW(bake(run, bundle), InputError);  // exists
  EXPECT_TRUE(bundle_problems(bundle).empty());
  EXPECT_FALSE(fs::exists(folder.path() / "bundle.tmp"));

  const auto self = make_self_communicator();
  BakeOptions options;
  options.source = run.folder / "nowhere";
  options.bundle = folder.path() / "other";
  EXPECT_THROW(bake_bundle(options, cpu_backend(), *self), InputError);
  options.source = run.folder;
  options.bundle = run.checkpoint;  // exists and is no bundle
  options.overwrite = true;
  EXPECT_THROW(bake_bundle(options, cpu_backend(), *self), InputError);
  EXPECT_TRUE(checkpoint_problems(run.checkpoint).empty());

  // A diverged f-gram model ends the bake.
  run.fgram_parameters.value(0).data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  std::vector<NamedTensor> tensors;
  for (const ParameterSet* set : {&run.main_parameters, &run.fgram_parameters}) {
    for (std::size_t i = 0; i < set->size(); ++i) {
      tensors.push_back({"parameters/" + set->spec(i).name, set->value(i)});
    }
  }
  CheckpointManifest manifest = read_manifest(run.checkpoint);
  manifest.step = 200;
  write_checkpoint(run.folder / "checkpoints", manifest, tensors, 0);
  options.bundle = folder.path() / "other";
  EXPECT_THROW(bake_bundle(options, cpu_backend(), *self), std::runtime_error);
  EXPECT_FALSE(fs::exists(folder.path() / "other"));
  EXPECT_FALSE(fs::exists(folder.path() / "other.tmp"));
}

TEST(Bake, ABaselineHasNoTable) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path(), true);
  EXPECT_EQ(bake(run, folder.path() / "bundle").rows, 0);
  const Bundle bundle = open_bundle(folder.path() / "bundle");
  EXPECT_EQ(bundle.table, nullptr);
  EXPECT_EQ(bundle.vocabulary, nullptr);
  EXPECT_TRUE(bundle_problems(folder.path() / "bundle").empty());
}

}  // namespace
}  // namespace scone
