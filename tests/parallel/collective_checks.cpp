#include "collective_checks.h"

#include <gtest/gtest.h>

#include <cstring>

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

}  // namespace scone
