#include "model/row_exchange.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <stdexcept>

#include "row_exchange_checks.h"

namespace scone {
namespace {

TEST(RowExchange, ExactRowsAndSums) {
  const auto self = make_self_communicator();
  check_row_exchange(*self, cpu_backend(), 1);
  for (const int ranks : {1, 2, 3, 5, 8}) {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      run_as_threads(ranks, [&](Communicator& world) {
        omp_set_num_threads(1);
        check_row_exchange(world, cpu_backend(), seed);
      });
    }
  }
}

// As many askers as ranks for one row: its gradient is summed in the order of their ranks.
TEST(RowExchange, SumsInTheOrderOfRanks) {
  const float given[] = {1.0F, 0x1p-24F, 0x1p-24F, -0.5F};
  float expected = 0;
  for (const float value : given) expected += value;
  run_as_threads(4, [&](Communicator& world) {
    const std::int64_t id = 0;
    const int owner = 2;
    const RowPlan plan = plan_rows(world, {&id, 1}, {&owner, 1});
    RowExchange exchange(world, cpu_backend(), 1);
    exchange.use(plan);
    const Tensor gradient = Tensor::zeros({1, 1}), sum = Tensor::zeros({1, 1});
    *gradient.data<float>() = given[world.rank()];
    exchange.give_back(gradient, sum);
    EXPECT_EQ(*sum.data<float>(), world.rank() == 2 ? expected : 0.0F);
  });
}

TEST(RowExchange, RefusesCellsOutOfRange) {
  const auto self = make_self_communicator();
  EXPECT_THROW(plan_rows(*self, {}, {}, {}, 0), std::invalid_argument);
  EXPECT_THROW(plan_rows(*self, {}, {}, {}, RowPlan::most_cells + 1), std::invalid_argument);
  const std::int64_t id = 0;
  const int owner = 0;
  const std::uint8_t cell = 2;
  EXPECT_THROW(plan_rows(*self, {&id, 1}, {&owner, 1}, {&cell, 1}, 2), std::out_of_range);
}

}  // namespace
}  // namespace scone
