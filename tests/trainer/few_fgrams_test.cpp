// Fewer f-grams than f-gram groups: some groups have nothing to compute, and must take part in
// every reduction all the same.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <array>

#include "layout_checks.h"
#include "tiny_data.h"

namespace scone {
namespace {

TEST(FewFgrams, GroupsWithoutNodesTrainToo) {
  const TinyData data;
  RunConfig config = data.run("few", 2);
  config.fgrams.size = 2;
  config.optimizer.epsilon = 1e-3;
  config.parallel.bucket_elements = 100;
  const auto self = make_self_communicator();
  const Trajectory expected = run_trajectory(*self, on_one_rank(config), 2);
  EXPECT_GT(expected.nodes_per_token.front(), 0);
  for (const auto& [ranks, main_tp, fgram_tp] :
       {std::array{4, 1, 1}, std::array{4, 2, 1}, std::array{6, 2, 2}, std::array{8, 1, 2}}) {
    for (const int zero : {0, 1}) {
      for (const bool sequence_parallel : {false, true}) {
        config.parallel.main = {.tp = main_tp, .zero = zero};
        config.parallel.fgram = {.tp = fgram_tp, .zero = zero};
        config.parallel.fgram.sequence_parallel = sequence_parallel;
        config.parallel.overlap = true;
        const std::string what = fmt::format("{} ranks, main tp {}, f-gram tp {}, zero {}", ranks,
                                             main_tp, fgram_tp, zero);
        run_as_threads(ranks, [&](Communicator& world) {
          omp_set_num_threads(1);
          check_trajectory(world, config, expected, what);
        });
      }
    }
  }
}

}  // namespace
}  // namespace scone
