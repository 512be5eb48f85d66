#include "launch/sweep/sweep_results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "launch/sweep/sweep_page.h"
#include "temporary_folder.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

/// A sweep of one finished point of 40 steps, 100 tokens and half a second each, but `slow_step`,
/// of 900 seconds; its metrics hold every `every`-th step.
void write_point(const fs::path& folder, int every, int slow_step = 0) {
  const fs::path point = folder / "points" / "a";
  fs::create_directories(point);
  std::ofstream(folder / "sweep.json") << R"({
    "launcher": "local", "name": "s", "run": "base.yaml", "points": [{
      "figures": {"embedding_parameters": 1, "fgram_node_flops": 10.0, "fgram_parameters": 1, "fgrams": 1,
                  "longest_fgram": 2, "main_flops": 100.0, "main_parameters": 1, "steps": 40, "tokens": 4000},
      "group": "", "labels": [], "metrics": "metrics.jsonl", "name": "a",
      "results": ["training.json", "evaluation.json"], "seed": 1,
      "stages": ["train", "eval"]}]})";
  std::ofstream(point / "state.json")
      << R"({"attempts":0,"exit_code":0,"stage":"eval","state":"finished"})";
  std::ofstream(point / "evaluation.json")
      << R"({"loss": 2.0, "perplexity": 7.4, "bits_per_byte": 1.0})";
  std::ofstream(point / "baked-evaluation.json") << R"({"loss": 2.0, "perplexity": 7.4})";
  std::ofstream(point / "bake.json") << R"({"table_bytes": 3000, "index_bytes": 7})";
  std::ofstream metrics(point / "metrics.jsonl");
  for (int step = every; step <= 40; step += every)
    metrics << R"({"step": )" << step << R"(, "tokens": )" << 100 * step
            << R"(, "loss": 2.5, "step_seconds": )" << (step == slow_step ? 900.0 : 0.5)
            << R"(, "fgram_nodes_computed_per_token": 0.5})"
            << "\n";
}

// docs/study keeps every 20th line.
TEST(SweepResults, DoNotDependOnLinesThatWereLeftOut) {
  for (const int every : {1, 4, 20}) {
    const TemporaryFolder folder;
    write_point(folder.path(), every);
    const SweepResults results = read_results(folder.path(), read_sweep_record(folder.path()));
    ASSERT_EQ(results.points.size(), 1U);
    const PointResult& point = results.points.front();
    EXPECT_DOUBLE_EQ(point.training_seconds, 20.0) << every;
    EXPECT_DOUBLE_EQ(point.tokens_per_second, 200.0) << every;
    EXPECT_DOUBLE_EQ(point.training_flops, 3 * 4000 * 105.0) << every;
    EXPECT_DOUBLE_EQ(point.training_flops_ratio(), 1.05) << every;
    EXPECT_EQ(point.table_bytes, 3007.0) << every;
    EXPECT_TRUE(point.finished());
  }
}

// As where a run was paused: the time that a plan takes from it is that of the steps before.
TEST(SweepResults, SpeedIsThatOfTheMedianStep) {
  const TemporaryFolder folder;
  write_point(folder.path(), 1, 7);
  const SweepResults results = read_results(folder.path(), read_sweep_record(folder.path()));
  EXPECT_DOUBLE_EQ(results.points.front().tokens_per_second, 200.0);
  EXPECT_DOUBLE_EQ(results.points.front().training_seconds, 919.5);
}

// e^800 is no number of JSON: its run is counted, and in no plot.
TEST(SweepResults, APerplexityBeyondNumbersIsInNoPlot) {
  const TemporaryFolder folder;
  write_point(folder.path(), 1);
  std::ofstream(folder.path() / "points" / "a" / "evaluation.json")
      << R"({"loss": 800.0, "perplexity": null, "bits_per_byte": 1154.0})";
  const SweepResults results = read_results(folder.path(), read_sweep_record(folder.path()));
  const std::string page = make_page(results, "");
  EXPECT_THAT(page, testing::HasSubstr("1 of 1 runs are finished"));
  EXPECT_THAT(page, testing::Not(testing::HasSubstr("perplexity 800")));
}

// A sweep whose file has other points than its folder's sweep.json knows what it has finished.
TEST(SweepResults, AreOfTheRecordThatIsAskedFor) {
  const TemporaryFolder folder;
  write_point(folder.path(), 1);
  SweepRecord record = read_sweep_record(folder.path());
  record.points.push_back(record.points.front());
  record.points.front().name += "2";
  const SweepResults results = read_results(folder.path(), record);
  ASSERT_EQ(results.points.size(), 2U);
  EXPECT_EQ(results.points[0].status.state, "waiting");
  EXPECT_FALSE(results.points[0].finished());
  EXPECT_TRUE(results.points[1].finished());
}

}  // namespace
}  // namespace scone
