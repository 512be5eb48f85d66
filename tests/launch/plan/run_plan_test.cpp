// The plan's formulas beside the objects that a run makes: bytes of memory and of collectives
// exactly.
#include "launch/plan/run_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "launch/plan/plan_report.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "trainer/tiny_data.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

constexpr int kSteps = 2;

/// "group kind" -> calls, bytes.
std::map<std::string, std::pair<std::int64_t, std::int64_t>> counts_of(const Traffic& traffic) {
  std::map<std::string, std::pair<std::int64_t, std::int64_t>> counts;
  for (const Traffic::Group& group : traffic.groups()) {
    for (std::size_t k = 0; k < kCollectiveKinds; ++k) {
      const CollectiveCount& count = group.kinds[k];
      if (count.calls > 0)
        counts[group.name + " " + name_of(static_cast<CollectiveKind>(k))] = {count.calls,
                                                                              count.bytes};
    }
  }
  return counts;
}

struct Layout {
  const char* name;
  int ranks;
  std::int64_t fgram_layers;
  GridConfig main, fgram;
  DType dtype = DType::fp32;
  Recompute recompute = Recompute::none;
  FgramRecompute fgram_recompute = FgramRecompute::chunk;
  bool overlap = true;
  ActivationKind activation = ActivationKind::gelu;
};

const Layout kLayouts[] = {
    {"alone", 1, 2, {}, {}},
    {"baseline of 2", 2, 0, {}, {}},
    {"baseline, tp 2", 2, 0, {.tp = 2}, {}},
    {"2 replicas", 2, 2, {}, {}, DType::fp32, Recompute::none, FgramRecompute::none},
    {"main tp 2", 2, 2, {.tp = 2}, {}, DType::fp32, Recompute::attention},
    {"f-gram tp 2", 2, 2, {.zero = 1}, {.tp = 2}, DType::fp32, Recompute::block},
    {"both tp 2, sequence parallel",
     4,
     2,
     {.tp = 2, .zero = 1, .sequence_parallel = true},
     {.tp = 2, .zero = 1, .sequence_parallel = true},
     DType::fp32,
     Recompute::block},
    {"sequence parallel, attention again",
     2,
     2,
     {.tp = 2, .sequence_parallel = true},
     {.tp = 2, .sequence_parallel = true},
     DType::fp32,
     Recompute::attention,
     FgramRecompute::none,
     false},
    {"bf16, crossed grids", 4, 2, {.tp = 2, .zero = 1}, {.tp = 1, .zero = 1}, DType::bf16},
    {"3 replicas",
     3,
     2,
     {.zero = 1},
     {},
     DType::fp32,
     Recompute::none,
     FgramRecompute::chunk,
     true,
     ActivationKind::swiglu},
};

RunConfig config_of(const TinyData& data, const Layout& layout) {
  RunConfig config = data.run("run", layout.fgram_layers);
  if (layout.fgram_layers == 0) config.fgrams.vocabulary.clear();
  config.data.validation.clear();
  config.parallel.main = layout.main;
  config.parallel.fgram = layout.fgram;
  config.parallel.bucket_elements = 1000;
  config.parallel.overlap = layout.overlap;
  config.compute.dtype = layout.dtype;
  config.compute.recompute = layout.recompute;
  config.model.fgram_recompute = layout.fgram_recompute;
  config.model.main.activation = config.model.fgram.activation = layout.activation;
  return config;
}

DeviceFigures some_device() { return device_figures("h100", DType::bf16); }

TEST(RunPlan, BytesAndCallsOfCollectivesAreThoseOfTraining) {
  const TinyData data(1);  // a vocabulary that no tp divides
  for (const Layout& layout : kLayouts) {
    const RunConfig config = config_of(data, layout);
    Traffic measured;
    double nodes_per_token = 0, fgram_flops = 0, main_flops = 0;
    run_as_threads(layout.ranks, [&](Communicator& world) {
      Trainer trainer(config, cpu_backend(), world);
      double nodes = 0;
      for (int step = 0; step < kSteps; ++step)
        nodes += trainer.train_step().fgram_nodes_per_token / kSteps;
      Traffic traffic = trainer.step_traffic();
      traffic.sum_over(world);
      if (world.rank() == 0) {
        measured = traffic;
        nodes_per_token = nodes;
      }
    });
    RunConfig planned = config;
    const RunData opened = open_run_data(planned);
    const FgramLoad load = survey_fgrams(planned, opened, layout.ranks, kSteps);
    const RunPlan plan = plan_run(planned, layout.ranks, load, {}, some_device());
    EXPECT_EQ(counts_of(plan.traffic), counts_of(measured)) << layout.name;
    EXPECT_NEAR(load.nodes_per_token, nodes_per_token, 1e-12) << layout.name;
    main_flops = plan.flops.main;
    fgram_flops = plan.flops.fgram;
    EXPECT_GT(main_flops, 0);
    EXPECT_EQ(fgram_flops > 0, layout.fgram_layers > 0);
  }
}

TEST(RunPlan, BytesOfStateAndActivationsAreThoseOfTheObjects) {
  const TinyData data(1);
  for (const Layout& layout : kLayouts) {
    const RunConfig config = config_of(data, layout);
    RunConfig planned = config;
    const RunData opened = open_run_data(planned);
    const FgramLoad load = survey_fgrams(planned, opened, layout.ranks, 1);
    const RunPlan plan = plan_run(planned, layout.ranks, load, {}, some_device());
    run_as_threads(layout.ranks, [&](Communicator& world) {
      Trainer trainer(config, cpu_backend(), world);
      trainer.train_step();
      const auto expect = [&](const char* name, const std::vector<std::size_t>& found) {
        const MemoryItem& item = plan.memory[static_cast<std::size_t>(world.rank())].item(name);
        const std::size_t fgram = found.size() > 1 ? found[1] : 0;
        EXPECT_EQ(item.main, static_cast<std::int64_t>(found[0]))
            << layout.name << ", main: " << name << " of rank " << world.rank();
        EXPECT_EQ(item.fgram, static_cast<std::int64_t>(fgram))
            << layout.name << ", f-gram: " << name << " of rank " << world.rank();
      };
      const MemoryUse use = trainer.memory_use();
      expect("parameters", {use.main.parameters, use.fgram.parameters});
      expect("gradients", {use.main.gradients, use.fgram.gradients});
      expect("AdamW moments", {use.main.moments, use.fgram.moments});
      expect("activations", {use.main.activations, use.fgram.activations});
    });
  }
}

TEST(RunPlan, EstimateIsNearTheSurvey) {
  const TinyData data;
  for (const Layout& layout : kLayouts) {
    if (layout.fgram_layers == 0) continue;
    RunConfig config = config_of(data, layout);
    const RunData opened = open_run_data(config);
    const FgramLoad exact = survey_fgrams(config, opened, layout.ranks, 1);
    const FgramLoad estimate = estimate_fgrams(config, layout.ranks, exact.nodes_per_token);
    EXPECT_TRUE(estimate.estimated);
    double nodes = 0, rows = 0;  // of a rank
    for (int rank = 0; rank < layout.ranks; ++rank) {
      nodes += static_cast<double>(exact.of(0, rank).trie_nodes) / layout.ranks;
      rows += static_cast<double>(exact.of(0, rank).rows_asked) / layout.ranks;
    }
    const RankLoad& estimated = estimate.of(0, 0);
    EXPECT_NEAR(static_cast<double>(estimated.trie_nodes) / nodes, 1, 0.5) << layout.name;
    EXPECT_GE(static_cast<double>(estimated.rows_asked) + 1, rows) << layout.name;
    std::int64_t own = estimated.nodes_computed();
    for (const std::int64_t chunk : estimated.chunks) {
      EXPECT_LE(chunk, config.model.fgram_chunk_nodes);
      own -= chunk;
    }
    EXPECT_EQ(own, 0);
    EXPECT_GE(estimated.nodes_computed(), estimated.trie_nodes);
  }
}

TEST(RunPlan, LinksOfRingsAndPairs) {
  const PlannedCollective within{"",      "", 8, 1, CollectiveKind::all_reduce, StepPart::reduction,
                                 {1, 800}};
  EXPECT_DOUBLE_EQ(link_bytes(within, 8).within_node, 2 * 7 * 100.0);
  EXPECT_DOUBLE_EQ(link_bytes(within, 8).across_nodes, 0);
  // 16 ranks on two nodes: of each node's eight one rank sends to the other node.
  PlannedCollective across = within;
  across.ranks = 16;
  across.count.bytes = 1600;
  EXPECT_DOUBLE_EQ(link_bytes(across, 8).across_nodes, 2 * 15 * 100.0 / 8);
  EXPECT_DOUBLE_EQ(link_bytes(across, 8).within_node, 2 * 15 * 100.0 * 7 / 8);
  // Replicas of tp 8: one on each node, all over the network.
  across.stride = 8;
  EXPECT_DOUBLE_EQ(link_bytes(across, 8).within_node, 0);
  PlannedCollective pairs = within;
  pairs.kind = CollectiveKind::all_to_all;
  pairs.ranks = 16;
  pairs.count.bytes = 1500;
  EXPECT_DOUBLE_EQ(link_bytes(pairs, 8).within_node, 700);
  EXPECT_DOUBLE_EQ(link_bytes(pairs, 8).across_nodes, 800);
}

TEST(RunPlan, SearchFindsWhatFitsFastestFirst) {
  const TinyData data;
  RunConfig config = config_of(data, kLayouts[0]);
  const RunData opened = open_run_data(config);
  DeviceFigures device = some_device();
  const auto all = search_grids(config, 4, 0.5, {}, device);
  // Heads allow tp 1 and 2, both with and without ZeRO-1: four choices a model, three of
  // recomputation.
  EXPECT_EQ(all.size(), 4U * 4 * 3);
  for (std::size_t i = 1; i < all.size(); ++i)
    EXPECT_LE(all[i - 1].seconds.sum(), all[i].seconds.sum());
  std::int64_t least = all[0].bytes(), most = all[0].bytes();
  for (const RunPlan& plan : all) {
    least = std::min(least, plan.bytes());
    most = std::max(most, plan.bytes());
  }
  ASSERT_LT(least, most);
  device.memory = least;
  const auto few = search_grids(config, 4, 0.5, {}, device);
  EXPECT_LT(few.size(), all.size());
  for (const RunPlan& plan : few) EXPECT_LE(plan.bytes(), least);
  EXPECT_THAT(describe_grids(few, 10, device), testing::HasSubstr("best of"));
}

TEST(RunPlan, UnknownDevice) { EXPECT_THROW(device_figures("h1000", DType::bf16), InputError); }

}  // namespace
}  // namespace scone
