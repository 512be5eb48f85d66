#include "checkpoint/bake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>

#include "checkpoint/bake_blocks.h"
#include "checkpoint/bundle.h"
#include "checkpoint/unfinished_folder.h"
#include "data/fgram_trie.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "tiny_run.h"
#include "worst_error.h"

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

std::vector<float> rows_of(const Bundle& bundle, std::span<const std::int64_t> ids) {
  std::vector<float> rows(ids.size() * static_cast<std::size_t>(bundle.table->width()));
  bundle.table->lookup(ids, rows);
  return rows;
}

TEST(BakeBlocks, HoldEveryFgramOnceInDepthFirstOrder) {
  const FgramVocabulary vocabulary = random_vocabulary(600, 40, 4, "f");
  for (const std::int64_t nodes : {1, 50, 100000}) {
    const BakeBlocks blocks(vocabulary, nodes);
    EXPECT_EQ(blocks.blocks(), (600 + nodes - 1) / nodes);
    std::set<std::int64_t> seen;
    for (std::int64_t block = 0; block < blocks.blocks(); ++block) {
      const auto ids = blocks.ids(block);
      if (block + 1 < blocks.blocks()) {
        EXPECT_EQ(static_cast<std::int64_t>(ids.size()), nodes);
      }
      EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
      for (const std::int64_t id : ids) EXPECT_TRUE(seen.insert(id).second);
      // Ancestors that other blocks hold are those of one path.
      const std::set<std::int64_t> own(ids.begin(), ids.end());
      std::set<std::int64_t> foreign;
      for (const std::int64_t id : ids)
        for (std::int64_t up = vocabulary.prefix(id); up >= 0; up = vocabulary.prefix(up))
          if (!own.contains(up)) foreign.insert(up);
      EXPECT_LE(foreign.size(), 2U);
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
  const std::vector<float> rows = rows_of(bundle, ids);
  const FgramVocabulary vocabulary(run.vocabulary_path);
  double worst = 0, largest = 0;
  for (const std::int64_t id : ids) {
    const auto live = live_row(run, vocabulary, id);
    for (std::size_t i = 0; i < live.size(); ++i) {
      const float baked = rows[static_cast<std::size_t>(id) * 16 + i];
      worst = worse(worst, static_cast<double>(std::fabs(baked - live[i])));
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
    const std::string table = read_bytes(bundle / "table/rows-00000.bin");
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

TEST(Bake, NarrowRowsAreTheRoundedOnes) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path());
  bake(run, folder.path() / "fp32");
  const std::vector<std::int64_t> ids = {599, 0, 17, 17};
  const auto expected = rows_of(open_bundle(folder.path() / "fp32"), ids);
  for (const auto& [type, epsilon] :
       {std::pair{RowType::bf16, 0x1p-8}, {RowType::fp16, 0x1p-11}, {RowType::int8, 0.0}}) {
    const fs::path path = folder.path() / name_of(type);
    bake(run, path, type);
    const auto rows = rows_of(open_bundle(path), ids);
    for (std::size_t i = 0; i < 64; ++i) {
      const auto begin = expected.begin() + static_cast<std::ptrdiff_t>(i / 16 * 16);
      double largest = 0;
      std::for_each(begin, begin + 16,
                    [&](float x) { largest = std::max(largest, std::fabs(double{x})); });
      const double step = type == RowType::int8 ? largest / 127 / 2 * 1.001 : 0;
      EXPECT_NEAR(rows[i], expected[i], epsilon * std::fabs(expected[i]) + step + 0x1p-25);
    }
  }
}

/// Bakes that were ended, and the same ones resumed on other ranks.
class ResumedBakeTest : public ::testing::Test {
 protected:
  ResumedBakeTest() : run_(folder_.path()) {
    options_.source = run_.folder;
    options_.block_nodes = 25;
    options_.file_bytes = kTableDataOffset + 100 * 64;  // six files
  }
  /// Ends by an exception when a rank has finished `blocks` blocks; negative: never.
  BakeResult bake(const fs::path& bundle, int ranks, int blocks = -1) {
    options_.bundle = bundle;
    BakeResult result;
    run_as_threads(ranks, [&](Communicator& communicator) {
      int done = 0;
      const BakeResult own =
          bake_bundle(options_, cpu_backend(), communicator, [&](const BakeProgress&) {
            if (++done == blocks) throw std::runtime_error("ended");
          });
      if (communicator.rank() == 0) result = own;
    });
    return result;
  }
  void expect_same(const fs::path& left, const fs::path& right) const {
    for (const auto& entry : fs::recursive_directory_iterator(left)) {
      if (!entry.is_regular_file()) continue;
      const fs::path name = fs::relative(entry.path(), left);
      EXPECT_EQ(read_bytes(entry.path()), read_bytes(right / name)) << name;
    }
  }

  TemporaryFolder folder_;
  TinyRun run_;
  BakeOptions options_;
};

TEST_F(ResumedBakeTest, GivesTheSameBytesOnAnyRanks) {
  const fs::path whole = folder_.path() / "whole", resumed = folder_.path() / "resumed";
  EXPECT_EQ(bake(whole, 1).rows_kept, 0);
  EXPECT_TRUE(fs::exists(whole / "table/rows-00005.bin"));
  EXPECT_FALSE(fs::exists(whole / "table/rows-00006.bin"));
  EXPECT_THROW(bake(resumed, 2, 3), std::runtime_error);
  EXPECT_TRUE(fs::exists(folder_.path() / "resumed.tmp/bake.json"));
  EXPECT_THROW(bake(resumed, 3, 2), std::runtime_error);
  const BakeResult result = bake(resumed, 2);
  EXPECT_GE(result.rows_kept, 100);
  EXPECT_LT(result.rows_kept, 600);
  expect_same(whole, resumed);
  EXPECT_FALSE(fs::exists(resumed / "bake.json"));
  EXPECT_TRUE(bundle_problems(resumed).empty());
}

TEST_F(ResumedBakeTest, ComputesAgainWhatWasDamaged) {
  const fs::path whole = folder_.path() / "whole", resumed = folder_.path() / "resumed";
  bake(whole, 1);
  EXPECT_THROW(bake(resumed, 1, 20), std::runtime_error);
  const fs::path left = folder_.path() / "resumed.tmp";
  std::ofstream(left / "bake-blocks-0", std::ios::app) << "21 0123";  // a line that was cut short
  const std::int64_t kept = 19 * 25;  // the exception came before the last block was written
  for (int file = 0; file < 6; ++file)
    flip_byte(left / table_file_name(file), kTableDataOffset + 64 * 50 + 7);
  const BakeResult result = bake(resumed, 1);
  EXPECT_GT(result.rows_kept, 0);
  EXPECT_LT(result.rows_kept, kept);
  expect_same(whole, resumed);
}

TEST_F(ResumedBakeTest, KeepsTheRowsWhereAFileCannotBeRead) {
  const fs::path whole = folder_.path() / "whole", resumed = folder_.path() / "resumed";
  const fs::path left = folder_.path() / "resumed.tmp";
  const fs::path file = left / table_file_name(2), away = folder_.path() / "away";
  bake(whole, 1);
  EXPECT_THROW(bake(resumed, 1, 20), std::runtime_error);
  fs::rename(file, away);
  EXPECT_THROW(bake(resumed, 1), InputError);
  EXPECT_TRUE(fs::exists(left / "bake.json"));
  fs::rename(away, file);
  EXPECT_GT(bake(resumed, 1).rows_kept, 300);
  expect_same(whole, resumed);
}

TEST_F(ResumedBakeTest, KeepsTheRowsWhereTheBundleCannotBePutInPlace) {
  // With ".old.tmp", of the bundle that is replaced, the name is too long.
  const fs::path bundle = folder_.path() / std::string(250, 'b');
  const fs::path left = bundle.string() + ".tmp";
  const std::int64_t rows = bake(bundle, 1).rows;
  const fs::path first = folder_.path() / "first";
  options_.overwrite = true;
  EXPECT_THROW(bake(bundle, 2), std::runtime_error);
  EXPECT_TRUE(bundle_problems(bundle).empty());
  EXPECT_TRUE(fs::exists(left / "bake.json"));
  fs::rename(bundle, first);
  EXPECT_EQ(bake(bundle, 1).rows_kept, rows);
  expect_same(first, bundle);
  EXPECT_FALSE(fs::exists(left));
}

TEST_F(ResumedBakeTest, StartsAnewForAnotherBake) {
  const fs::path bundle = folder_.path() / "bundle";
  EXPECT_THROW(bake(bundle, 1, 20), std::runtime_error);
  options_.type = RowType::bf16;
  const BakeResult result = bake(bundle, 1);
  EXPECT_TRUE(result.started_anew);
  EXPECT_EQ(result.rows_kept, 0);
  EXPECT_TRUE(bundle_problems(bundle).empty());
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
  EXPECT_EQ(bundle.matcher->max_length(), 4);  // the model's K
  const FgramVocabulary used(folder.path() / "larger.h5", 0, 4);
  EXPECT_EQ(bundle.matcher->fingerprint(), used.fingerprint());
  for (std::int64_t id = 850; id < 900; ++id) {
    const std::vector<float> row = rows_of(bundle, std::span(&id, 1));
    EXPECT_EQ(bundle.table->index().find(larger.tokens(id)), larger.length(id) > 4 ? -1 : id);
    if (larger.length(id) > 4) {
      for (const float value : row) EXPECT_EQ(value, 0.0F);
    } else {
      const auto live = live_row(run, used, id);
      for (std::size_t i = 0; i < 16; ++i) EXPECT_NEAR(row[i], live[i], 4e-6);
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
  const fs::path other = folder.path() / "bundle.tmp";
  fs::create_directories(other / "table");  // nobody knows whose
  EXPECT_THROW(bake(run, bundle), InputError);
  EXPECT_TRUE(fs::exists(other / "table"));
  std::ofstream(other / ".unfinished").put('\n');  // a bake's that was killed
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
  EXPECT_THROW(bake_bundle(options, cpu_backend(), *self), InputError);
  EXPECT_FALSE(fs::exists(folder.path() / "other"));
  EXPECT_FALSE(fs::exists(folder.path() / "other.tmp"));
}

// Each would publish rows of the other's.
TEST(Bake, TwoIntoOneFolderAreRefused) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path());
  const fs::path bundle = folder.path() / "bundle", temporary = folder.path() / "bundle.tmp";
  {
    const UnfinishedFolder other(temporary);
    std::ofstream(temporary / "rows").put('x');
    try {
      bake(run, bundle);
      ADD_FAILURE() << "two bakes into one folder";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("another scone makes it now"));
    }
    EXPECT_TRUE(fs::exists(temporary / "rows"));
    EXPECT_FALSE(fs::exists(bundle));
  }
  bake(run, bundle);  // of one that was killed
  EXPECT_TRUE(bundle_problems(bundle).empty());
  EXPECT_FALSE(fs::exists(temporary));
  EXPECT_FALSE(fs::exists(bundle / ".unfinished") || fs::exists(bundle / "rows"));
}

TEST(Bake, ABaselineHasNoTable) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path(), true);
  EXPECT_EQ(bake(run, folder.path() / "bundle").rows, 0);
  const Bundle bundle = open_bundle(folder.path() / "bundle");
  EXPECT_EQ(bundle.table, nullptr);
  EXPECT_EQ(bundle.matcher, nullptr);
  EXPECT_TRUE(bundle_problems(folder.path() / "bundle").empty());
}

}  // namespace
}  // namespace scone
