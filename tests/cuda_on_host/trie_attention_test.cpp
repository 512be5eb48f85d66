#include "model/ops/cuda/trie_attention.h"

#include <cstring>

#include "attention_cases.h"

namespace scone::cuda {
namespace {

using Parents = std::vector<std::int32_t>;

Parents chain(int nodes) {
  Parents result;
  for (int i = 0; i < nodes; ++i) result.push_back(i - 1);
  return result;
}

/// A forest in preorder: each node hangs on the path of the one before, at most `depth` deep.
Parents forest(int nodes, int depth, unsigned seed) {
  std::mt19937 random(seed);
  Parents result, path;
  for (int i = 0; i < nodes; ++i) {
    const std::size_t level =
        random() % (std::min(path.size(), static_cast<std::size_t>(depth - 1)) + 1);
    path.resize(level);
    result.push_back(level == 0 ? -1 : path.back());
    path.push_back(i);
  }
  return result;
}

/// Paths of `trunk` nodes, at whose end `leaves` nodes hang, some with a child; then a single node.
Parents hot(int trunk, int leaves) {
  Parents result = chain(trunk);
  for (int i = 0; i < leaves; ++i) {
    const bool child = i % 3 == 2;
    result.push_back(child ? static_cast<std::int32_t>(result.size()) - 1 : trunk - 1);
  }
  result.push_back(-1);
  return result;
}

struct Case {
  std::string name;
  Parents parents;
  std::int64_t heads, head_width;
};

std::vector<Case> cases() {
  return {
      {"one node", {-1}, 1, 64},
      {"chain of 64", chain(64), 2, 16},
      {"bush", hot(1, 40), 3, 32},
      {"forest", forest(150, 5, 1), 2, 64},
      {"forest, 21 wide", forest(60, 5, 2), 2, 21},
      {"deep forest", forest(140, 64, 3), 1, 8},
      {"wide heads", forest(12, 4, 4), 1, 320},
      {"odd wide heads", forest(12, 4, 4), 1, 101},
      {"hot root over several tiles", hot(1, 300), 1, 8},
      {"hot path within the split depths", hot(6, 290), 1, 8},
      {"hot path beyond the split depths", hot(12, 270), 1, 8},
      {"hot path that starts at a tile's end",
       [] {
         Parents parents = forest(126, 3, 5);
         const auto offset = static_cast<std::int32_t>(parents.size());
         for (const std::int32_t parent : hot(4, 200)) {
           parents.push_back(parent < 0 ? -1 : parent + offset);
         }
         return parents;
       }(),
       1, 8},
  };
}

template <class T>
class TrieAttention : public ::testing::Test {};
TYPED_TEST_SUITE(TrieAttention, KernelTypes, TypeNames);

std::vector<std::int64_t> path_of(const Parents& parents, std::int64_t node) {
  std::vector<std::int64_t> path;
  for (; node >= 0; node = parents[static_cast<std::size_t>(node)]) path.push_back(node);
  return path;
}

template <class T>
void run_case(const Case& c, bool check_values = true) {
  const TrieShape shape{static_cast<std::int64_t>(c.parents.size()), c.heads, c.head_width};
  const std::int64_t width = c.heads * c.head_width;
  const auto qkv = normal_values<T>(shape.nodes * 3 * width, 1);
  const auto d_out = normal_values<T>(shape.nodes * width, 2);
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  const DeviceArray<T> x(qkv), dy(d_out), out(size(shape.nodes * width)),
      d_x(size(shape.nodes * 3 * width));
  const DeviceArray<std::int32_t> parent(c.parents);
  const DeviceArray<float> log_sum_exp(size(shape.nodes * c.heads));
  const DeviceArray<char> workspace(size(trie_attention_backward_workspace_bytes(shape)));
  trie_attention(shape, x.data(), parent.data(), out.data(), log_sum_exp.data(), nullptr);
  const auto backward = [&] {
    trie_attention_backward(shape, x.data(), parent.data(), out.data(), log_sum_exp.data(),
                            dy.data(), d_x.data(), workspace.data(), nullptr);
  };
  backward();
  const std::vector<T> first = d_x.values();
  if (check_values) {
    const AttentionReference expected =
        attention_reference(shape.nodes, c.heads, c.head_width, doubles_of(qkv), doubles_of(d_out),
                            [&](std::int64_t i) { return path_of(c.parents, i); });
    const std::int64_t reduction = 2 * (c.head_width + shape.nodes);
    expect_near<T>("out", out.doubles(), expected.out, 2 * (c.head_width + 64), c.name);
    expect_near<T>("log_sum_exp", log_sum_exp.doubles(), expected.log_sum_exp,
                   2 * (c.head_width + 64), c.name);
    expect_near<T>("d_qkv", doubles_of(first), expected.d_qkv, reduction, c.name);
  }
  backward();  // blocks and threads come in another order
  const std::vector<T> second = d_x.values();
  EXPECT_EQ(std::memcmp(first.data(), second.data(), first.size() * sizeof(T)), 0) << c.name;
}

TYPED_TEST(TrieAttention, AgreesWithTheReferenceInAnyOrderOfBlocks) {
  for (const Case& c : cases()) run_case<TypeParam>(c);
}

TEST(TrieAttentionOfManyNodes, AddsWholeRunsOfTiles) {
  run_case<float>({"root of 20,000 nodes", hot(2, 20000), 1, 4});
}

TYPED_TEST(TrieAttention, NothingToDo) {
  trie_attention<TypeParam>({0, 2, 32}, nullptr, nullptr, nullptr, nullptr, nullptr);
  trie_attention_backward<TypeParam>({0, 2, 32}, nullptr, nullptr, nullptr, nullptr, nullptr,
                                     nullptr, nullptr, nullptr);
}

TYPED_TEST(TrieAttention, AHeadTooWideIsAnError) {
  try {
    trie_attention<TypeParam>({4, 1, 2000}, nullptr, nullptr, nullptr, nullptr, nullptr);
    FAIL() << "no error";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("2000 elements"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace scone::cuda
