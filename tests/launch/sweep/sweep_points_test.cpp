// Points of a sweep: what a file expands to, and what is refused.
#include "launch/sweep/sweep_points.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "launch/sweep/sweep_config.h"
#include "parallel/error.h"
#include "temporary_folder.h"

namespace scone {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const char* const kBase = R"(run: {folder: unused}
data: {train: shards/train}
fgrams: {vocabulary: fgrams.h5}
model:
  main: {width: 32, layers: 2, heads: 2, context: 64}
  fgram: {layers: 1}
trainer: {steps: 30, batch_tokens: 512}
)";

/// Runs in a folder of its own, which holds base.yaml.
class SweepPointsTest : public testing::Test {
 protected:
  void SetUp() override {
    before_ = std::filesystem::current_path();
    std::filesystem::current_path(folder_.path());
    write("base.yaml", kBase);
  }
  void TearDown() override { std::filesystem::current_path(before_); }
  static void write(const std::string& name, const std::string& text) {
    std::ofstream(name) << text;
  }
  /// The points of a sweep with these lines after `run` and `folder`.
  static std::vector<SweepPoint> points(const std::string& lines) {
    write("s.yaml", "run: base.yaml\nfolder: out\n" + lines);
    return expand_points(load_sweep_config("s.yaml"));
  }
  static std::vector<std::string> names(const std::vector<SweepPoint>& points) {
    std::vector<std::string> list;
    for (const SweepPoint& point : points) list.push_back(point.name);
    return list;
  }
  static std::string error_of(const std::string& lines) {
    try {
      points(lines);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }

 private:
  std::filesystem::path before_;
  TemporaryFolder folder_;
};

TEST_F(SweepPointsTest, NoAxesAreOnePoint) {
  const auto all = points("");
  EXPECT_THAT(names(all), ElementsAre("run"));
  EXPECT_EQ(all[0].config.run.folder, "out/points/run");
  EXPECT_EQ(all[0].config.trainer.steps, 30);
}

TEST_F(SweepPointsTest, AxesMultiply) {
  const auto all = points("axes:\n  fgrams.size: [10K, 1M]\n  model.fgram.layers: [1, 3]\n");
  EXPECT_THAT(names(all),
              ElementsAre("fgrams.size-10K_fgram.layers-1", "fgrams.size-10K_fgram.layers-3",
                          "fgrams.size-1M_fgram.layers-1", "fgrams.size-1M_fgram.layers-3"));
  EXPECT_EQ(all[1].config.fgrams.size, 10000);
  EXPECT_EQ(all[1].config.model.fgram.layers, 3);
  EXPECT_EQ(all[2].config.fgrams.size, 1000000);
  ASSERT_EQ(all[0].labels.size(), 2);
  EXPECT_EQ(all[0].labels[0].axis, "fgrams.size");
  EXPECT_EQ(all[0].labels[0].value, "10K");
}

TEST_F(SweepPointsTest, GroupsHaveAxesAndSeedsOfTheirOwn) {
  const auto all = points(R"(axes:
  size:
    small: {model.main.width: 16}
    large: {model.main.width: 64, model.main.heads: 4}
points:
  - name: baseline
    model.fgram.layers: 0
    fgrams.vocabulary: ""
    seeds: [1, 2]
  - name: scone
    axes: {fgrams.size: [100]}
seeds: [7]
)");
  EXPECT_THAT(names(all),
              ElementsAre("baseline_small_seed-1", "baseline_small_seed-2", "baseline_large_seed-1",
                          "baseline_large_seed-2", "scone_small_fgrams.size-100_seed-7",
                          "scone_large_fgrams.size-100_seed-7"));
  EXPECT_EQ(all[1].config.run.seed, 2);
  EXPECT_EQ(all[1].config.fgrams.vocabulary, "");
  EXPECT_EQ(all[3].config.model.main.heads, 4);
  EXPECT_EQ(all[5].config.model.main.width, 64);
  EXPECT_THAT(all[5].labels[0].keys, ElementsAre("model.main.width", "model.main.heads"));
}

TEST_F(SweepPointsTest, DerivedSettingsFollowFromOthers) {
  const auto all = points(R"(axes:
  model.main.width: [16, 64]
derived:
  model.main.ffw: "{model.main.width}"
  data.validation: "shards/{trainer.batch_tokens}/validation"
  optimizer.peak_lr: {from: model.main.width, values: {16: 6e-3, 64: 5e-3}}
)");
  ASSERT_EQ(all.size(), 2);
  EXPECT_EQ(all[0].config.model.main.ffw, 16);
  EXPECT_EQ(all[1].config.model.main.ffw, 64);
  EXPECT_THAT(all[0].config.data.validation, ElementsAre("shards/512/validation"));
  EXPECT_EQ(all[0].config.optimizer.peak_lr, 6e-3);
  EXPECT_EQ(all[1].config.optimizer.peak_lr, 5e-3);
}

TEST_F(SweepPointsTest, LookUpTakesOneNumberInTwoSpellings) {
  const auto all = points(
      "axes: {fgrams.size: [10K]}\n"
      "derived: {trainer.steps: {from: fgrams.size, values: {10000: 77}}}\n");
  EXPECT_EQ(all[0].config.trainer.steps, 77);
}

TEST_F(SweepPointsTest, AxisThatNamesNoKey) {
  EXPECT_EQ(error_of("axes:\n  model.main.widht: [16]\n"),
            "s.yaml:4: model.main.widht: names no key of a run; the nearest is model.main.width");
  EXPECT_THAT(error_of("axes:\n  width: [16]\n"),
              HasSubstr("s.yaml:4: axes.width: names no key of a run; the nearest is "
                        "model.main.width"));
  EXPECT_THAT(error_of("axes: {run.folder: [a, b]}\n"), HasSubstr("the sweep gives each point"));
  EXPECT_THAT(error_of("axes: {run.seed: [1, 2]}\n"), HasSubstr("seeds: [..]"));
  EXPECT_THAT(error_of("points:\n  - {name: a, optimizer.lr: 1}\n"),
              HasSubstr("optimizer.lr: names no key of a run; the nearest is optimizer.peak_lr"));
  EXPECT_THAT(error_of("derived: {model.main.ffw: \"{model.main.with}\"}\n"),
              HasSubstr("'model.main.with' names no key of a run; the nearest is "
                        "model.main.width"));
}

TEST_F(SweepPointsTest, PointsThatCollide) {
  EXPECT_THAT(error_of("axes: {model.main.layers: [2, 2]}\n"),
              HasSubstr("s.yaml: point main.layers-2: two points have this name"));
  EXPECT_THAT(error_of("axes: {fgrams.size: [10K, 10000]}\n"),
              HasSubstr("point fgrams.size-10000: has the same settings as fgrams.size-10K"));
  EXPECT_THAT(error_of("points:\n  - {name: a b}\n  - {name: a-b, model.main.layers: 3}\n"),
              HasSubstr("point a-b: two points have this name (s.yaml:4 and s.yaml:5)"));
  EXPECT_THAT(error_of("seeds: [3, 3]\n"), HasSubstr("point seed-3: two points have this name"));
}

TEST_F(SweepPointsTest, KeyThatIsSetTwice) {
  EXPECT_THAT(error_of("axes:\n  model.main.layers: [2]\npoints:\n  - name: a\n"
                       "    model.main.layers: 3\n"),
              HasSubstr("point a_main.layers-2: model.main.layers is set twice, at s.yaml:7 and at "
                        "s.yaml:4"));
  EXPECT_THAT(error_of("axes: {model.main.layers: [2]}\nderived: {model.main.layers: 3}\n"),
              HasSubstr("model.main.layers is set twice"));
}

TEST_F(SweepPointsTest, EachPointIsCheckedAsARun) {
  EXPECT_EQ(error_of("axes:\n  model.main.heads: [2, 5]\n"),
            "s.yaml: point main.heads-5: s.yaml:4: model.main.heads: 5 heads do not divide "
            "model.main.width 32; give a divisor of it");
  EXPECT_THAT(error_of("axes: {trainer.steps: [10, many]}\n"),
              HasSubstr("point trainer.steps-many: s.yaml:3: trainer.steps: expected an integer"));
  EXPECT_THAT(
      error_of("launcher: {local: {ranks: 16}}\n"),
      HasSubstr("point run: base.yaml:7: trainer.batch_tokens: 512 tokens are 8 sequences"));
}

TEST_F(SweepPointsTest, FilesThatAreNoSweeps) {
  EXPECT_EQ(error_of("axis: {}\n"), "s.yaml:3: axis: unknown key; the nearest valid key is axes");
  EXPECT_THAT(
      error_of("launcher: {local: {job: 2}}\n"),
      HasSubstr("s.yaml:3: launcher.local.job: unknown key; the nearest valid key is jobs"));
  EXPECT_THAT(error_of("launcher: {local: {jobs: 0}}\n"),
              HasSubstr("launcher.local.jobs: expected an integer from 1 to"));
  EXPECT_THAT(error_of("launcher: {local: {}, slurm: {}}\n"), HasSubstr("expected one of local"));
  EXPECT_THAT(error_of("bake: fp8\n"), HasSubstr("s.yaml:3: bake: expected false, true (fp32)"));
  EXPECT_THAT(error_of("points: [{model.main.layers: 3}]\n"), HasSubstr("no name"));
  EXPECT_THAT(error_of("seeds: 3\n"), HasSubstr("s.yaml:3: seeds: expected a list"));
  EXPECT_THAT(error_of("folder: other\n"), HasSubstr("s.yaml:3: folder: given twice"));
  EXPECT_THAT(error_of("axes: [\n"), HasSubstr("not valid YAML"));
  write("s.yaml", "folder: out\n");
  EXPECT_THROW(load_sweep_config("s.yaml"), InputError);
  EXPECT_THROW(load_sweep_config("absent.yaml"), InputError);
  write("s.yaml", "run: absent.yaml\nfolder: out\n");
  EXPECT_THROW(expand_points(load_sweep_config("s.yaml")), InputError);
}

TEST_F(SweepPointsTest, ChangedSettingsAreNamed) {
  const auto before = points("axes: {model.main.layers: [2]}\n");
  const auto same = points(
      "axes: {model.main.layers: [2]}\nderived: {checkpoint.every: 5, compute.threads: 3}\n");
  EXPECT_THAT(changed_settings(before[0].config, same[0].config), ElementsAre());
  const auto now = points(
      "axes: {model.main.layers: [2]}\nderived: {optimizer.peak_lr: 1e-3, trainer.steps: 9}\n");
  EXPECT_THAT(changed_settings(before[0].config, now[0].config),
              ElementsAre("optimizer.peak_lr: 0.0006 before, 0.001 now",
                          "trainer.steps: 30 before, 9 now"));
}

}  // namespace
}  // namespace scone
