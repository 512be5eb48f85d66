#include <gtest/gtest.h>

#include "layout_checks.h"
#include "tiny_data.h"

namespace scone {
namespace {

TEST(Layout, MpiRanksAgreeWithOneRank) {
  const auto world = make_mpi_communicator();
  const auto self = make_self_communicator();
  const TinyData data(1);
  for (const std::int64_t fgram_layers : {2, 0}) {
    RunConfig config = data.run("run", fgram_layers);
    config.optimizer.epsilon = 1e-3;
    if (fgram_layers == 0) config.fgrams.vocabulary.clear();
    const Trajectory expected = run_trajectory(*self, on_one_rank(config), 4);
    for (const int main_tp : {1, 2}) {
      config.parallel.main = {
          .tp = std::min(main_tp, world->size()), .zero = main_tp - 1, .sequence_parallel = true};
      config.parallel.fgram = {.tp = std::min(3 - main_tp, world->size()), .zero = 2 - main_tp};
      check_trajectory(*world, config, expected,
                       std::to_string(world->size()) + " ranks, main tp " +
                           std::to_string(config.parallel.main.tp) + ", f-gram tp " +
                           std::to_string(config.parallel.fgram.tp));
    }
  }
}

}  // namespace
}  // namespace scone
