#include "parallel/process_grid.h"

#include <gtest/gtest.h>

#include "parallel/error.h"

namespace scone {
namespace {

TEST(ProcessGrid, CoordinatesAndGroupsOfEveryGrid) {
  for (int ranks = 1; ranks <= 8; ++ranks)
    for (int tp = 1; tp <= ranks; ++tp) {
      if (ranks % tp != 0) continue;
      run_as_threads(ranks, [&](Communicator& world) {
        const ProcessGrid grid(world, tp, "fgram");
        EXPECT_EQ(grid.model(), "fgram");
        EXPECT_EQ(grid.tensor_size(), tp);
        EXPECT_EQ(grid.data_size(), ranks / tp);
        EXPECT_EQ(grid.data_rank() * tp + grid.tensor_rank(), world.rank());
        EXPECT_EQ(grid.tensor_rank(), world.rank() % tp);
        EXPECT_FALSE(grid.tensor_crosses_nodes());
        EXPECT_EQ(grid.tensor().name(), "fgram tensor-parallel");
        EXPECT_EQ(grid.data().name(), "fgram data-parallel");
        for (int t = 0; t < tp; ++t)
          EXPECT_EQ(grid.tensor().members()[static_cast<std::size_t>(t)],
                    grid.data_rank() * tp + t);
        for (int d = 0; d < ranks / tp; ++d)
          EXPECT_EQ(grid.data().members()[static_cast<std::size_t>(d)],
                    d * tp + grid.tensor_rank());
        // Over the rows, then over the columns: the whole world.
        const auto rows = grid.tensor().all_reduce_value(std::int64_t{world.rank()}, ReduceOp::sum);
        EXPECT_EQ(grid.data().all_reduce_value(rows, ReduceOp::sum), ranks * (ranks - 1) / 2);
      });
    }
}

std::string error_of(int ranks, int tp, const std::string& model) {
  std::string message = "nothing was thrown";
  run_as_threads(ranks, [&](Communicator& world) {
    try {
      ProcessGrid(world, tp, model);
    } catch (const InputError& error) {
      if (world.rank() == 0) message = error.what();
    }
  });
  return message;
}

TEST(ProcessGrid, SaysWhichSizesAreValid) {
  EXPECT_EQ(error_of(8, 3, "main"),
            "parallel.main.tp: 3 does not divide 8 ranks; the nearest valid values are 2 and 4");
  EXPECT_EQ(error_of(6, 4, "fgram"),
            "parallel.fgram.tp: 4 does not divide 6 ranks; the nearest valid values are 3 and 6");
  EXPECT_EQ(error_of(4, 8, "main"),
            "parallel.main.tp: 8 does not divide 4 ranks; the nearest valid value is 4");
  EXPECT_EQ(error_of(4, 0, "main"),
            "parallel.main.tp: 0 does not divide 4 ranks; the nearest valid value is 1");
  EXPECT_EQ(error_of(1, 2, "main"),
            "parallel.main.tp: 2 does not divide 1 rank; the nearest valid value is 1");
}

}  // namespace
}  // namespace scone
