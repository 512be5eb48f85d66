// What CountedCommunicator counts.
#include "parallel/traffic.h"

#include <gtest/gtest.h>

#include <span>
#include <vector>

namespace scone {
namespace {

using Kind = CollectiveKind;

TEST(Traffic, CountsCallsAndBytesOfEveryCollective) {
  run_as_threads(2, [](Communicator& inner) {
    Traffic traffic;
    const auto world = count_traffic(inner, traffic);
    const auto pair = world->split(0, "pair");
    std::vector<float> values(10, 1.0F), slice(5);
    const std::vector<std::int64_t> halves = {5, 5};
    pair->all_reduce(std::span(values), ReduceOp::sum);
    pair->start_all_reduce_sum(std::span(values).first(3))->wait();
    pair->reduce_scatter(std::span<const float>(values), halves, std::span(slice));
    pair->start_reduce_scatter(std::span<const float>(values), halves, std::span(slice))->wait();
    pair->all_gather(std::span(values), halves);
    std::vector<Bf16> small(10);
    pair->all_reduce_sum(std::span(small));  // done by way of floats, which are not counted
    pair->all_gather(std::span(small), halves);
    EXPECT_EQ(traffic.group("pair", 2).of(Kind::all_reduce), (CollectiveCount{3, 72}));
    EXPECT_EQ(traffic.group("pair", 2).of(Kind::reduce_scatter), (CollectiveCount{2, 80}));
    EXPECT_EQ(traffic.group("pair", 2).of(Kind::all_gather), (CollectiveCount{2, 60}));

    const Traffic before = traffic;
    const std::vector<std::int64_t> counts =
        world->rank() == 0 ? std::vector<std::int64_t>{1, 2} : std::vector<std::int64_t>{4, 3};
    const std::vector<std::int64_t> received =
        world->exchange_counts(counts);  // one of 8 bytes to the other
    std::vector<std::byte> sent(static_cast<std::size_t>(counts[0] + counts[1])),
        got(static_cast<std::size_t>(received[0] + received[1]));
    world->all_to_all(sent, counts, got, received, 1);
    const std::int64_t to_other = world->rank() == 0 ? 2 : 4;
    EXPECT_EQ(traffic.group("world", 2).of(Kind::all_to_all), (CollectiveCount{2, 8 + to_other}));
    const Traffic since = traffic.since(before);
    EXPECT_EQ(since.groups()[0].of(Kind::all_to_all), (CollectiveCount{2, 8 + to_other}));
    EXPECT_EQ(since.groups()[1].of(Kind::all_reduce), CollectiveCount{});
  });
}

TEST(Traffic, LeavesOutGroupsOfOneAndThoseOfOtherThreads) {
  run_as_threads(2, [](Communicator& inner) {
    Traffic traffic;
    const auto world = count_traffic(inner, traffic);
    const auto alone = world->split(world->rank(), "alone");
    const auto background = world->split_on_host(0, "background");
    std::vector<float> values(4);
    alone->all_reduce(std::span(values), ReduceOp::sum);
    background->all_reduce(std::span(values), ReduceOp::sum);
    ASSERT_EQ(traffic.groups().size(), 1U);
    EXPECT_EQ(traffic.groups()[0].of(Kind::all_reduce), CollectiveCount{});
  });
}

TEST(Traffic, IsSummedOverTheRanks) {
  run_as_threads(3, [](Communicator& inner) {
    Traffic traffic, twice;
    const auto world = count_traffic(inner, traffic);
    std::vector<float> values(4);
    world->all_reduce(std::span(values), ReduceOp::sum);
    twice.add(traffic);
    twice.add(traffic);
    twice.sum_over(inner);
    EXPECT_EQ(twice.groups()[0].of(Kind::all_reduce), (CollectiveCount{6, 96}));
  });
}

}  // namespace
}  // namespace scone
