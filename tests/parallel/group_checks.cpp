#include "group_checks.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/collective.h"
#include "parallel/watchdog.h"

namespace scone {
namespace {

using Counts = std::vector<std::int64_t>;

std::int64_t total(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

/// Small integers, so that sums of a few are exact; different for every rank and element.
float value(int rank, std::size_t i) {
  return static_cast<float>((i * 7 + static_cast<std::size_t>(rank) * 13) % 101);
}

std::vector<float> values_of(int rank, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = value(rank, i);
  return values;
}

float sum_of_ranks(int ranks, std::size_t i) {
  float sum = 0;
  for (int r = 0; r < ranks; ++r) sum += value(r, i);
  return sum;
}

/// No elements, none for some ranks, uneven ones, and slices of more than one piece.
std::vector<Counts> slice_counts(int ranks) {
  std::vector<Counts> cases;
  const auto size = static_cast<std::size_t>(ranks);
  cases.emplace_back(size, 0);
  cases.emplace_back(size, 1);
  Counts uneven, one(size, 0);
  for (int r = 0; r < ranks; ++r) uneven.push_back(r % 3 == 1 ? 0 : 100 + 37 * r);
  one.back() = 4099;
  cases.push_back(uneven);
  cases.push_back(one);
  Counts large(size, 9000);
  large.front() = 4300000 / std::max(1, ranks - 1);  // just over a round's 16 MiB of sources
  cases.push_back(large);
  return cases;
}

void check_scattered_slices(Communicator& group, const TestMemory& memory) {
  const auto rank = static_cast<std::size_t>(group.rank());
  for (const Counts& counts : slice_counts(group.size())) {
    const auto elements = static_cast<std::size_t>(total(counts));
    const auto begin =
        static_cast<std::size_t>(total({counts.begin(), counts.begin() + group.rank()}));
    const auto own = static_cast<std::size_t>(counts[rank]);
    const auto values = values_of(group.rank(), elements);
    const std::vector<float> unset(own, -1.0f);
    TestBuffer<float> input(memory, values), sums(memory, unset), pending_sums(memory, unset);
    const std::span<const float> input_span = input.span();
    group.reduce_scatter(input_span, counts, sums.span());
    group.start_reduce_scatter(input_span, counts, pending_sums.span())->wait();
    const auto slice = sums.values();
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < own; ++i)
      wrong += slice[i] != sum_of_ranks(group.size(), begin + i);
    EXPECT_EQ(wrong, 0) << "of " << own;
    EXPECT_EQ(slice, pending_sums.values());
    EXPECT_EQ(input.values(), values) << "reduce_scatter changed its input";

    std::vector<float> shown(elements, -1.0f);
    std::copy(slice.begin(), slice.end(), shown.begin() + static_cast<std::ptrdiff_t>(begin));
    TestBuffer<float> gather(memory, shown);
    group.all_gather(gather.span(), counts);
    const auto gathered = gather.values();
    wrong = 0;
    for (std::size_t i = 0; i < elements; ++i)
      wrong += gathered[i] != sum_of_ranks(group.size(), i);
    EXPECT_EQ(wrong, 0) << "of " << elements;
  }
}

/// Sums that depend on the order of the ranks: the same on all of them, and again.
void check_sums_are_reproducible(Communicator& group, const TestMemory& memory) {
  auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  };
  for (const std::size_t count : {std::size_t{5}, std::size_t{3000}, std::size_t{2500000}}) {
    std::vector<float> own(count);
    for (std::size_t i = 0; i < count; ++i)
      own[i] = 1.0f / (1.0f + value(group.rank(), i)) + 1e-3f * value(group.rank(), i / 3);
    auto reduced = [&](bool pending) {
      TestBuffer<float> buffer(memory, own);
      if (pending)
        group.start_all_reduce_sum(buffer.span())->wait();
      else
        group.all_reduce(buffer.span(), ReduceOp::sum);
      return buffer.values();
    };
    for (const bool pending : {false, true}) {
      const auto sum = reduced(pending);
      EXPECT_TRUE(same(sum, reduced(pending))) << count;
      auto first = sum;
      group.broadcast(std::as_writable_bytes(std::span(first)), 0);
      EXPECT_TRUE(same(first, sum))
          << count << " elements differ between rank 0 and rank " << group.rank();
    }
    Counts counts(static_cast<std::size_t>(group.size()), 0);
    counts.back() = static_cast<std::int64_t>(count);
    TestBuffer<float> values(memory, own);
    auto slice = [&] {
      TestBuffer<float> buffer(memory,
                               std::vector<float>(group.rank() == group.size() - 1 ? count : 0));
      group.reduce_scatter(std::span<const float>(values.span()), counts, buffer.span());
      return buffer.values();
    };
    const auto once = slice();
    EXPECT_TRUE(same(once, slice()));
  }
}

/// An all_to_all of `width` elements to every rank, made distinct by `salt`.
struct Exchange {
  Exchange(Communicator& group, std::int64_t width, std::int64_t salt, const TestMemory& memory)
      : counts(static_cast<std::size_t>(group.size()), width),
        sent(memory, sent_values(group, width, salt)),
        received(memory, std::vector<std::int64_t>(sent.span().size(), -1)) {
    for (int r = 0; r < group.size(); ++r)
      for (std::int64_t i = 0; i < width; ++i)
        expected.push_back(salt * 1000000 + r * 1000 + group.rank() * 100 + i % 100);
  }
  static std::vector<std::int64_t> sent_values(Communicator& group, std::int64_t width,
                                               std::int64_t salt) {
    std::vector<std::int64_t> values;
    for (int r = 0; r < group.size(); ++r)
      for (std::int64_t i = 0; i < width; ++i)
        values.push_back(salt * 1000000 + group.rank() * 1000 + r * 100 + i % 100);
    return values;
  }
  std::unique_ptr<PendingCollective> start(Communicator& group) {
    Counts passing = counts;  // goes while the collective is under way
    return group.start_all_to_all(std::as_bytes(sent.span()), passing,
                                  std::as_writable_bytes(received.span()), passing,
                                  sizeof(std::int64_t));
  }
  Counts counts;
  TestBuffer<std::int64_t> sent, received;
  std::vector<std::int64_t> expected;
};

void check_pending(Communicator& group, const TestMemory& memory) {
  const std::size_t elements = 1500000;
  const Counts counts(static_cast<std::size_t>(group.size()), 7001);
  const auto summed_elements = static_cast<std::size_t>(total(counts));
  TestBuffer<float> reduced_buffer(memory, values_of(group.rank(), elements));
  TestBuffer<float> values(memory, values_of(group.rank(), summed_elements));
  TestBuffer<float> slice_buffer(memory, std::vector<float>(7001));
  Exchange first(group, 1, 1, memory), second(group, 20000, 2, memory), none(group, 0, 3, memory),
      third(group, 3, 4, memory);
  std::vector<std::unique_ptr<PendingCollective>> pending;
  pending.push_back(first.start(group));
  pending.push_back(group.start_all_reduce_sum(reduced_buffer.span()));
  pending.push_back(second.start(group));
  pending.push_back(none.start(group));
  pending.push_back(group.start_reduce_scatter(std::span<const float>(values.span()), counts,
                                               slice_buffer.span()));
  pending.push_back(third.start(group));
  // Every rank finishes them in an order of its own: one by wait, the next by asking, and one by
  // letting it go.
  std::rotate(pending.begin(), pending.begin() + group.rank() % 6, pending.end());
  std::reverse(pending.begin(), pending.end());
  pending[0]->wait();
  EXPECT_TRUE(pending[0]->done());
  while (!pending[1]->done()) std::this_thread::yield();
  pending[2].reset();
  for (auto& one : pending)
    if (one != nullptr) one->wait();
  for (const Exchange* exchange : {&first, &second, &none, &third})
    EXPECT_EQ(exchange->received.values(), exchange->expected);
  const auto reduced = reduced_buffer.values(), slice = slice_buffer.values();
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < elements; ++i) wrong += reduced[i] != sum_of_ranks(group.size(), i);
  for (std::size_t i = 0; i < slice.size(); ++i)
    wrong +=
        slice[i] != sum_of_ranks(group.size(), static_cast<std::size_t>(group.rank()) * 7001 + i);
  EXPECT_EQ(wrong, 0);
}

void check_split(Communicator& world, const TestMemory& memory) {
  const int ranks = world.size(), rank = world.rank();
  EXPECT_EQ(world.name(), "world");
  ASSERT_EQ(world.members().size(), static_cast<std::size_t>(ranks));
  for (int r = 0; r < ranks; ++r) EXPECT_EQ(world.members()[static_cast<std::size_t>(r)], r);

  // Odd and even ranks; at once each group computes what the other one does not.
  const auto half = world.split(rank % 2 == 0 ? 7 : 0, rank % 2 == 0 ? "even" : "odd");
  std::vector<int> members;
  for (int r = rank % 2; r < ranks; r += 2) members.push_back(r);
  EXPECT_EQ(half->name(), rank % 2 == 0 ? "even" : "odd");
  EXPECT_EQ(std::vector<int>(half->members().begin(), half->members().end()), members);
  EXPECT_EQ(half->rank(), rank / 2);
  EXPECT_EQ(half->size(), static_cast<int>(members.size()));
  EXPECT_EQ(half->on_device(), world.on_device());
  for (int repeat = 0; repeat < (rank % 2 == 0 ? 3 : 5); ++repeat)
    check_scattered_slices(*half, memory);
  EXPECT_EQ(half->all_reduce_value(std::int64_t{rank}, ReduceOp::sum),
            std::accumulate(members.begin(), members.end(), std::int64_t{0}));

  // A group of a group knows the world's ranks, and outlives the one that it comes from.
  std::unique_ptr<Communicator> quarter;
  {
    const auto passing = world.split(rank % 2, "passing");
    quarter = passing->split(passing->rank() / 2, "quarter");
  }
  std::vector<int> expected;
  for (const int member : members)
    if (member / 4 == rank / 4) expected.push_back(member);
  EXPECT_EQ(std::vector<int>(quarter->members().begin(), quarter->members().end()), expected);
  const auto gathered = quarter->all_gather(std::as_bytes(std::span(&rank, 1)));
  ASSERT_EQ(gathered.size(), expected.size());
  for (std::size_t r = 0; r < expected.size(); ++r) {
    int other = -1;
    std::memcpy(&other, gathered[r].data(), sizeof(other));
    EXPECT_EQ(other, expected[r]);
  }
  EXPECT_THROW(world.split(-1, "none"), std::runtime_error);
}

/// Another thread of each rank uses a group of its own while this one uses the world.
void check_second_thread(Communicator& world, const TestMemory& memory) {
  const auto batches = world.split(0, "batch stream");
  std::thread other([&] {
    omp_set_num_threads(1);
    for (int repeat = 0; repeat < 30; ++repeat) {
      Exchange exchange(*batches, 1 + 500 * (repeat % 3), repeat, memory);
      exchange.start(*batches)->wait();
      EXPECT_EQ(exchange.received.values(), exchange.expected);
      const std::string text(static_cast<std::size_t>(world.rank() * 10 + repeat), 'x');
      const auto texts = batches->all_gather(std::as_bytes(std::span(text)));
      for (std::size_t r = 0; r < texts.size(); ++r)
        EXPECT_EQ(texts[r].size(), r * 10 + static_cast<std::size_t>(repeat));
    }
  });
  for (int repeat = 0; repeat < 3; ++repeat) {
    check_pending(world, memory);
    check_scattered_slices(world, memory);
  }
  other.join();
}

void check_wrong_arguments(Communicator& group) {
  const Counts counts(static_cast<std::size_t>(group.size()), 2);
  std::vector<float> values(counts.size() * 2), slice(3);
  EXPECT_THROW(group.reduce_scatter(values, counts, slice), std::runtime_error);
  EXPECT_THROW(group.start_reduce_scatter(values, counts, slice), std::runtime_error);
  EXPECT_THROW(group.all_gather(std::span(values).first(1), counts), std::runtime_error);
  const Counts negative(static_cast<std::size_t>(group.size()), -1);
  EXPECT_THROW(group.all_gather(std::span(values).first(0), negative), std::runtime_error);
  EXPECT_THROW(group.broadcast({}, group.size()), std::runtime_error);
  try {
    group.all_to_all(std::as_bytes(std::span(values)), counts,
                     std::as_writable_bytes(std::span(values)), std::span(counts).first(0), 4);
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    const std::string start =
        "rank " + std::to_string(group.rank()) + ": all_to_all of world (rank";
    EXPECT_EQ(std::string(error.what()).substr(0, start.size()), start);
  }
}

}  // namespace

void check_waits_are_watched(Communicator& world) {
  const auto ranks = static_cast<std::size_t>(world.size());
  const Counts ones(ranks, 1);
  std::vector<float> floats(ranks), slice(1);
  std::vector<double> doubles(ranks);
  std::vector<std::byte> bytes(ranks), more(ranks);
  const std::vector<std::pair<std::string, std::function<void()>>> cases{
      {"split", [&] { world.split(0, "part"); }},
      {"barrier", [&] { world.barrier(); }},
      {"all_reduce", [&] { world.all_reduce(std::span(doubles), ReduceOp::max); }},
      {"all_reduce", [&] { world.start_all_reduce_sum(floats)->wait(); }},
      {"broadcast", [&] { world.broadcast(bytes, world.size() - 1); }},
      {"all_gather", [&] { world.all_gather(std::as_bytes(std::span(bytes))); }},
      {"all_gather", [&] { world.all_gather(floats, ones); }},
      {"all_to_all", [&] { world.all_to_all(bytes, ones, more, ones, 1); }},
      {"all_to_all", [&] { world.start_all_to_all(bytes, ones, more, ones, 1)->wait(); }},
      {"reduce_scatter", [&] { world.reduce_scatter(floats, ones, slice); }},
      {"reduce_scatter", [&] { world.start_reduce_scatter(floats, ones, slice)->wait(); }}};
  for (const auto& [name, collective] : cases) {
    world.barrier();
    if (world.rank() > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(600));
      collective();
      continue;
    }
    std::string heard;
    {
      const Watchdog watchdog(std::chrono::milliseconds(50),
                              [&](const std::string& message) { heard = message; });
      collective();
    }
    EXPECT_EQ(heard.substr(0, 18), "rank 0 has waited ") << name;
    EXPECT_NE(heard.find(" s in " + name + " of " + describe_group(world) + "; parallel."),
              std::string::npos)
        << heard;
  }
}

void check_groups(Communicator& world, const TestMemory& memory) {
  check_wrong_arguments(world);
  check_scattered_slices(world, memory);
  check_sums_are_reproducible(world, memory);
  check_pending(world, memory);
  check_split(world, memory);
  check_second_thread(world, memory);
}

}  // namespace scone
