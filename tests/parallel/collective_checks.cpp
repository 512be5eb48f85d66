#include "collective_checks.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "parallel/fgram_exchange.h"

namespace scone {
namespace {

template <class T>
void check_all_reduce(Communicator& communicator, std::size_t count) {
  const int ranks = communicator.size();
  const auto rank = static_cast<T>(communicator.rank());
  const auto rank_sum = static_cast<T>(ranks * (ranks - 1) / 2);
  std::vector<T> values(count), highest(count), lowest(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto base = static_cast<T>(i % 1000);
    values[i] = highest[i] = lowest[i] = base + rank;
  }
  communicator.all_reduce(std::span(values), ReduceOp::sum);
  communicator.all_reduce(std::span(highest), ReduceOp::max);
  communicator.all_reduce(std::span(lowest), ReduceOp::min);
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto base = static_cast<T>(i % 1000);
    wrong += values[i] != base * static_cast<T>(ranks) + rank_sum;
    wrong += highest[i] != base + static_cast<T>(ranks - 1);
    wrong += lowest[i] != base;
  }
  EXPECT_EQ(wrong, 0) << "of " << 3 * count;
}

}  // namespace

void check_collectives(Communicator& communicator) {
  const int ranks = communicator.size(), rank = communicator.rank();
  // One element, a few, none, and more than one piece of a large message.
  for (const std::size_t count :
       {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{1500000}}) {
    check_all_reduce<float>(communicator, count);
    check_all_reduce<double>(communicator, count);
    check_all_reduce<std::int64_t>(communicator, count);
  }
  EXPECT_EQ(communicator.all_reduce_value(std::int64_t{rank + 1}, ReduceOp::sum),
            ranks * (ranks + 1) / 2);

  for (int root = 0; root < ranks; ++root) {
    const std::string text =
        rank == root ? "from " + std::to_string(root) : "something longer than that";
    EXPECT_EQ(communicator.broadcast_string(text, root), "from " + std::to_string(root));
  }

  // Rank r gathers r bytes of value r.
  const std::vector<std::byte> own(static_cast<std::size_t>(rank), static_cast<std::byte>(rank));
  const auto gathered = communicator.all_gather(own);
  ASSERT_EQ(gathered.size(), static_cast<std::size_t>(ranks));
  for (int r = 0; r < ranks; ++r)
    EXPECT_EQ(gathered[static_cast<std::size_t>(r)],
              std::vector<std::byte>(static_cast<std::size_t>(r), static_cast<std::byte>(r)));

  // Rank r sends (r + q) % 3 elements of value 100 r + q to rank q.
  std::vector<std::int64_t> send, send_counts, expected;
  for (int q = 0; q < ranks; ++q) {
    send_counts.push_back((rank + q) % 3);
    send.insert(send.end(), static_cast<std::size_t>(send_counts.back()), 100 * rank + q);
    expected.insert(expected.end(), static_cast<std::size_t>((rank + q) % 3), 100 * q + rank);
  }
  const auto receive_counts = communicator.exchange_counts(send_counts);
  std::vector<std::int64_t> received(expected.size());
  communicator.all_to_all(std::as_bytes(std::span(send)), send_counts,
                          std::as_writable_bytes(std::span(received)), receive_counts,
                          sizeof(std::int64_t));
  EXPECT_EQ(received, expected);
  communicator.barrier();
}

void check_fgram_exchange(Communicator& communicator) {
  const int ranks = communicator.size(), rank = communicator.rank();
  const std::int64_t width = 3;
  // Rank r needs the multiples of r + 1 below 40; id i belongs to rank (i / 4) % ranks.
  auto owner_of = [&](std::int64_t id) { return static_cast<int>((id / 4) % ranks); };
  std::vector<std::int64_t> ids;
  std::vector<int> owner;
  std::set<std::int64_t> expected_owned;
  for (std::int64_t id = 0; id < 40; ++id) {
    for (int r = 0; r < ranks; ++r)
      if (id % (r + 1) == 0 && owner_of(id) == rank) expected_owned.insert(id);
    if (id % (rank + 1) != 0) continue;
    ids.push_back(id);
    owner.push_back(owner_of(id));
  }
  FgramExchange exchange(communicator, width);
  const auto& owned = exchange.plan(ids, owner);
  EXPECT_EQ(owned, std::vector<std::int64_t>(expected_owned.begin(), expected_owned.end()));

  std::vector<float> owned_rows, rows(ids.size() * 3), gradients;
  for (const std::int64_t id : owned)
    for (int c = 0; c < 3; ++c) owned_rows.push_back(static_cast<float>(10 * id + c));
  exchange.to_positions(owned_rows, rows);
  for (std::size_t i = 0; i < ids.size(); ++i)
    for (std::size_t c = 0; c < 3; ++c)
      EXPECT_EQ(rows[i * 3 + c], static_cast<float>(10 * ids[i]) + static_cast<float>(c));

  for (const std::int64_t id : ids)
    for (int c = 0; c < 3; ++c) gradients.push_back(static_cast<float>((rank + 1) * (id + c)));
  std::vector<float> owned_gradients(owned.size() * 3, -1.0f);
  exchange.to_owners(gradients, owned_gradients);
  for (std::size_t i = 0; i < owned.size(); ++i)
    for (std::size_t c = 0; c < 3; ++c) {
      float expected = 0;
      for (int r = 0; r < ranks; ++r)
        if (owned[i] % (r + 1) == 0)
          expected +=
              static_cast<float>(r + 1) * (static_cast<float>(owned[i]) + static_cast<float>(c));
      EXPECT_EQ(owned_gradients[i * 3 + c], expected);
    }
  if (ranks == 1) {
    EXPECT_EQ(exchange.bytes_sent(), 0);
  }
}

}  // namespace scone
