#include "collective_checks.h"

#include <gtest/gtest.h>

namespace scone {
namespace {

template <class T>
void check_all_reduce(Communicator& communicator, std::size_t count, const TestMemory& memory) {
  const int ranks = communicator.size();
  const auto rank = static_cast<T>(communicator.rank());
  const auto rank_sum = static_cast<T>(ranks * (ranks - 1) / 2);
  std::vector<T> own(count);
  for (std::size_t i = 0; i < count; ++i) own[i] = static_cast<T>(i % 1000) + rank;
  auto reduced = [&](ReduceOp op) {
    TestBuffer<T> buffer(memory, own);
    communicator.all_reduce(buffer.span(), op);
    return buffer.values();
  };
  const auto sum = reduced(ReduceOp::sum), highest = reduced(ReduceOp::max),
             lowest = reduced(ReduceOp::min);
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto base = static_cast<T>(i % 1000);
    wrong += sum[i] != base * static_cast<T>(ranks) + rank_sum;
    wrong += highest[i] != base + static_cast<T>(ranks - 1);
    wrong += lowest[i] != base;
  }
  EXPECT_EQ(wrong, 0) << "of " << 3 * count;
}

/// 256 + i % 8 steps of 2 (the distance of bfloat16 there), and of every rank but the first 1: what
/// a sum in bfloat16, rank by rank, would lose or make too much of.
float bf16_term(int rank, std::size_t i) {
  return rank == 0 ? 256.0f + 2.0f * static_cast<float>(i % 8) : 1.0f;
}

Bf16 bf16_sum(int ranks, std::size_t i) {
  return to_bf16(bf16_term(0, i) + static_cast<float>(ranks - 1));
}

std::vector<Bf16> bf16_terms(int rank, std::size_t count) {
  std::vector<Bf16> terms;
  for (std::size_t i = 0; i < count; ++i) terms.push_back(to_bf16(bf16_term(rank, i)));
  return terms;
}

/// Different for every element and rank; not all of them numbers.
Bf16 bf16_pattern(int rank, std::size_t i) {
  const Bf16 value{static_cast<std::uint16_t>(i * 40503u + static_cast<std::size_t>(rank) * 977u)};
  return to_bf16(to_float(value));  // no signalling NaN
}

}  // namespace

void check_bf16_collectives(Communicator& communicator, const TestMemory& memory) {
  const int ranks = communicator.size(), rank = communicator.rank();
  const auto rank_index = static_cast<std::size_t>(rank), size = static_cast<std::size_t>(ranks);
  for (const std::size_t count :
       {std::size_t{0}, std::size_t{1}, std::size_t{21}, std::size_t{1100000}}) {
    TestBuffer<Bf16> values(memory, bf16_terms(rank, count));
    communicator.all_reduce_sum(values.span());
    const auto sums = values.values();
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i) wrong += sums[i] != bf16_sum(ranks, i);
    EXPECT_EQ(wrong, 0) << "of " << count;
  }
  std::vector<std::vector<std::int64_t>> cases(4, std::vector<std::int64_t>(size, 0));
  for (std::size_t r = 0; r < size; ++r) {
    cases[0][r] = r % 3 == 1 ? 0 : static_cast<std::int64_t>(100 + 37 * r);
    cases[1][r] = 4;
    cases[2][r] = r + 1 == size ? 1100001 : 3;  // more than one piece of a slice
  }
  for (const auto& counts : cases) {
    std::size_t begin = 0, elements = 0;
    for (std::size_t r = 0; r < size; ++r) {
      if (r == rank_index) begin = elements;
      elements += static_cast<std::size_t>(counts[r]);
    }
    const auto own = static_cast<std::size_t>(counts[rank_index]);
    const auto terms = bf16_terms(rank, elements);
    TestBuffer<Bf16> values(memory, terms), slice(memory, std::vector<Bf16>(own));
    communicator.reduce_scatter(std::span<const Bf16>(values.span()), counts, slice.span());
    const auto sums = slice.values();
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < own; ++i) wrong += sums[i] != bf16_sum(ranks, begin + i);
    EXPECT_EQ(wrong, 0) << "of " << own;
    EXPECT_EQ(values.values(), terms) << "reduce_scatter changed its input";

    std::vector<Bf16> expected, shown(elements);
    for (std::size_t r = 0; r < size; ++r)
      for (std::size_t i = 0; i < static_cast<std::size_t>(counts[r]); ++i) {
        expected.push_back(bf16_pattern(static_cast<int>(r), i));
        if (r == rank_index) shown[expected.size() - 1] = expected.back();
      }
    TestBuffer<Bf16> gathered(memory, shown);
    communicator.all_gather(gathered.span(), counts);
    EXPECT_TRUE(gathered.values() == expected) << elements << " elements";
  }
  const std::vector<std::int64_t> counts(size, 2);
  TestBuffer<Bf16> values(memory, std::vector<Bf16>(2 * size)), slice(memory, std::vector<Bf16>(3));
  EXPECT_THROW(
      communicator.reduce_scatter(std::span<const Bf16>(values.span()), counts, slice.span()),
      std::runtime_error);
  EXPECT_THROW(communicator.all_gather(values.span().first(1), counts), std::runtime_error);
}

void check_collectives(Communicator& communicator, const TestMemory& memory) {
  const int ranks = communicator.size(), rank = communicator.rank();
  // One element, a few, none, and more than one piece of a large message.
  for (const std::size_t count :
       {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{1500000}}) {
    check_all_reduce<float>(communicator, count, memory);
    check_all_reduce<double>(communicator, count, host_memory);
    check_all_reduce<std::int64_t>(communicator, count, host_memory);
  }
  check_bf16_collectives(communicator, memory);
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
