#include "row_exchange_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "model/row_exchange.h"

namespace scone {
namespace {

constexpr std::int64_t width = 3;

/// What every rank asks for, which each draws alike: ids are table rows, id i of rank r's table is
/// 1000 r + row.
struct Wishes {
  struct OfRank {
    std::vector<std::int64_t> ids;
    std::vector<int> owner;
    std::vector<std::uint8_t> cell;
  };
  std::vector<OfRank> ranks;
  std::vector<std::int64_t> table_rows;  // of each rank
};

Wishes draw_wishes(std::mt19937_64& random, int ranks, std::int64_t most_ids, int cells) {
  const auto below = [&](std::int64_t limit) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(limit));
  };
  Wishes wishes;
  for (int r = 0; r < ranks; ++r) wishes.table_rows.push_back(1 + below(40));
  const int favourite = static_cast<int>(below(ranks));  // owns most of what is asked
  const std::int64_t kind = below(3);
  for (int r = 0; r < ranks; ++r) {
    Wishes::OfRank of_rank;
    const bool idle = r % 3 == 1 || most_ids == 0;  // asks for nothing
    std::vector<std::int64_t> all;
    for (int owner = 0; owner < ranks; ++owner) {
      if (kind == 0 && owner != favourite) continue;  // the others are asked for nothing
      for (std::int64_t row = 0; row < wishes.table_rows[static_cast<std::size_t>(owner)]; ++row)
        all.push_back(1000 * owner + row);
    }
    std::shuffle(all.begin(), all.end(), random);
    const std::int64_t count =
        idle ? 0 : std::min(most_ids, below(static_cast<std::int64_t>(all.size()) + 1));
    of_rank.ids.assign(all.begin(), all.begin() + count);
    for (const std::int64_t id : of_rank.ids) {
      of_rank.owner.push_back(static_cast<int>(id / 1000));
      // Cells of very different sizes, some empty.
      of_rank.cell.push_back(static_cast<std::uint8_t>(std::min(below(cells), below(cells))));
    }
    wishes.ranks.push_back(std::move(of_rank));
  }
  return wishes;
}

float row_value(std::int64_t id, std::int64_t column) {
  return static_cast<float>(10 * id + column);
}
/// Small integers, so that sums are exact in any order.
float gradient_value(int asker, std::int64_t id, std::int64_t column) {
  return static_cast<float>((asker + 1) * (id % 1000 + 1) + column);
}

void check_plan(const RowPlan& plan, const Wishes& wishes, int rank, int cells) {
  const auto ranks = wishes.ranks.size();
  const auto& own = wishes.ranks[static_cast<std::size_t>(rank)];
  ASSERT_EQ(plan.cells, cells);
  ASSERT_EQ(plan.asked_counts.size(), static_cast<std::size_t>(cells) * ranks);
  ASSERT_EQ(plan.asked.size(), own.ids.size());
  std::size_t asked = 0, served = 0;
  for (int cell = 0; cell < cells; ++cell) {
    for (std::size_t other = 0; other < ranks; ++other) {
      const std::size_t place = static_cast<std::size_t>(cell) * ranks + other;
      for (std::int64_t k = 0; k < plan.asked_counts[place]; ++k, ++asked) {
        const auto i = static_cast<std::size_t>(plan.asked[asked]);
        EXPECT_EQ(own.owner[i], static_cast<int>(other));
        EXPECT_EQ(own.cell[i], cell);
      }
      const auto& asker = wishes.ranks[other];
      std::vector<std::int64_t> expected;
      for (std::size_t i = 0; i < asker.ids.size(); ++i)
        if (asker.owner[i] == rank && asker.cell[i] == cell) expected.push_back(asker.ids[i]);
      const auto begin = plan.served.begin() + static_cast<std::ptrdiff_t>(served);
      ASSERT_EQ(plan.served_counts[place], static_cast<std::int64_t>(expected.size()));
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), begin));
      served += expected.size();
    }
  }
  EXPECT_EQ(served, plan.served.size());
}

/// [values / width, width], with room for one row more.
Tensor tensor_of(Backend& backend, const std::vector<float>& values, std::int64_t columns) {
  const auto rows = static_cast<std::int64_t>(values.size()) / columns;
  const Tensor tensor = Tensor::zeros({rows + 1, columns}, DType::fp32, backend.device());
  backend.upload(values, tensor);
  return tensor.rows(0, rows);
}

std::vector<float> values_of(Backend& backend, const Tensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  backend.download(tensor, values);
  return values;
}

void exchange_once(Communicator& world, Backend& backend, RowExchange& exchange,
                   const Wishes& wishes, int cells, std::mt19937_64 finish_order) {
  const int rank = world.rank();
  const auto& own = wishes.ranks[static_cast<std::size_t>(rank)];
  const auto table_rows = wishes.table_rows[static_cast<std::size_t>(rank)];
  RowPlan plan = plan_rows(world, own.ids, own.owner, own.cell, cells);
  check_plan(plan, wishes, rank, cells);
  for (std::int64_t& row : plan.served) row -= 1000 * rank;

  exchange.use(plan);
  EXPECT_EQ(exchange.bytes_sent(), 0);
  std::vector<float> values(static_cast<std::size_t>(table_rows * width));
  for (std::int64_t i = 0; i < table_rows * width; ++i)
    values[static_cast<std::size_t>(i)] = row_value(1000 * rank + i / width, i % width);
  const Tensor table = tensor_of(backend, values, width);
  const std::vector<float> unset(own.ids.size() * width, -1.0F);
  Tensor rows_tensor = tensor_of(backend, unset, width);
  // A rank may finish cells in an order of its own.
  std::vector<int> order(static_cast<std::size_t>(cells));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), finish_order);
  for (int cell = 0; cell < cells; ++cell) exchange.start_rows(cell, table);
  exchange.poll();
  for (const int cell : order) exchange.finish_rows(cell, rows_tensor);
  std::vector<float> rows = values_of(backend, rows_tensor);
  for (std::size_t i = 0; i < own.ids.size(); ++i)
    for (std::int64_t c = 0; c < width; ++c)
      ASSERT_EQ(rows[i * width + static_cast<std::size_t>(c)], row_value(own.ids[i], c));

  std::vector<float> own_gradients(own.ids.size() * width);
  for (std::size_t i = 0; i < own.ids.size(); ++i)
    for (std::int64_t c = 0; c < width; ++c)
      own_gradients[i * width + static_cast<std::size_t>(c)] = gradient_value(rank, own.ids[i], c);
  const Tensor gradients = tensor_of(backend, own_gradients, width);
  const std::vector<float> begun(values.size(), 0.5F);  // are added to
  Tensor sums = tensor_of(backend, begun, width);
  std::shuffle(order.begin(), order.end(), finish_order);
  for (int cell = 0; cell < cells; ++cell) {
    exchange.start_gradients(cell, gradients);
    exchange.poll();
  }
  for (const int cell : order) exchange.finish_gradients(cell, sums);
  std::vector<float> expected = begun;
  std::int64_t sent_rows = 0;
  for (std::size_t asker = 0; asker < wishes.ranks.size(); ++asker) {
    const auto& theirs = wishes.ranks[asker];
    for (std::size_t i = 0; i < theirs.ids.size(); ++i) {
      const bool to_another = static_cast<int>(asker) != theirs.owner[i];
      if (to_another && (static_cast<int>(asker) == rank || theirs.owner[i] == rank)) ++sent_rows;
      if (theirs.owner[i] != rank) continue;
      for (std::int64_t c = 0; c < width; ++c)
        expected[static_cast<std::size_t>((theirs.ids[i] % 1000) * width + c)] +=
            gradient_value(static_cast<int>(asker), theirs.ids[i], c);
    }
  }
  EXPECT_EQ(values_of(backend, sums), expected);
  // A served row goes out, the gradient of an asked one too.
  EXPECT_EQ(exchange.bytes_sent(), sent_rows * width * static_cast<std::int64_t>(sizeof(float)));

  rows_tensor = tensor_of(backend, unset, width);
  sums = tensor_of(backend, begun, width);
  exchange.fetch(table, rows_tensor);
  rows = values_of(backend, rows_tensor);
  exchange.give_back(gradients, sums);
  EXPECT_EQ(values_of(backend, sums), expected);
  for (std::size_t i = 0; i < own.ids.size(); ++i)
    EXPECT_EQ(rows[i * width], row_value(own.ids[i], 0));
}

}  // namespace

void check_row_exchange(Communicator& world, Backend& backend, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  RowExchange exchange(world, backend, width);
  for (const std::int64_t most_ids : {60, 5, 0, 200, 1}) {  // smaller and larger again
    for (int cells = 1; cells <= RowPlan::most_cells; ++cells) {
      const Wishes wishes = draw_wishes(random, world.size(), most_ids, cells);
      const auto of_rank = static_cast<std::uint64_t>(100 * cells + world.rank());
      exchange_once(world, backend, exchange, wishes, cells, std::mt19937_64(of_rank));
    }
  }
}

}  // namespace scone
