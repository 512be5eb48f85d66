#include "model/ops/cuda/causal_attention.h"

#include <cstring>

#include "attention_cases.h"
#include "model/ops/cuda/cached_attention.h"
#include "model/ops/cuda/causal_attention_kernels.h"
#include "parallel/cuda/device.h"

namespace scone::cuda {
namespace {

enum class Starts { zero, documents, any, edges };

struct Case {
  CausalShape shape;  // sequences, length, heads, head_width
  Starts starts = Starts::zero;
  int factor = 1;  // of queries and keys
};

std::string name_of(const Case& c) {
  static const char* const kStarts[] = {"from 0", "documents", "any start", "tile edges"};
  return std::to_string(c.shape.sequences) + " x " + std::to_string(c.shape.length) + ", " +
         std::to_string(c.shape.heads) + " heads of " + std::to_string(c.shape.head_width) + ", " +
         kStarts[static_cast<int>(c.starts)] + ", x" + std::to_string(c.factor);
}

/// documents: starts rise now and then; any: each is anywhere up to its own position; edges: starts
/// are the last positions of tiles of keys.
std::vector<std::int32_t> starts_of(const Case& c) {
  std::mt19937 random(3);
  std::vector<std::int32_t> result;
  for (std::int64_t sequence = 0; sequence < c.shape.sequences; ++sequence) {
    std::int32_t start = 0;
    for (std::int32_t i = 0; i < c.shape.length; ++i) {
      if (c.starts == Starts::documents && random() % 40 == 0) start = i;
      if (c.starts == Starts::any) start = static_cast<std::int32_t>(random() % (unsigned(i) + 1));
      if (c.starts == Starts::edges) start = i / 64 * 64 - (i < 64 ? 0 : 1);
      result.push_back(start);
    }
  }
  return result;
}

template <class T>
class CausalAttention : public ::testing::Test {
 protected:
  CausalAttention() { open_cuda_device(0); }  // it says how much shared memory blocks have
};
TYPED_TEST_SUITE(CausalAttention, KernelTypes, TypeNames);

template <class T>
void run_case(const Case& c) {
  const CausalShape& shape = c.shape;
  const std::int64_t rows = shape.sequences * shape.length, width = shape.heads * shape.head_width;
  auto qkv = normal_values<T>(rows * 3 * width, 1);
  for (std::size_t i = 0; i < qkv.size(); ++i) {
    const auto column = static_cast<std::int64_t>(i) % (3 * width);
    if (column < 2 * width) qkv[i] = static_cast<T>(static_cast<float>(qkv[i]) * float(c.factor));
  }
  const auto d_out = normal_values<T>(rows * width, 2);
  const std::vector<std::int32_t> starts = starts_of(c);
  const AttentionReference expected = attention_reference(
      rows, shape.heads, shape.head_width, doubles_of(qkv), doubles_of(d_out), [&](std::int64_t i) {
        const std::int64_t first = i / shape.length * shape.length;
        std::vector<std::int64_t> keys;
        for (std::int64_t j = first + starts[static_cast<std::size_t>(i)]; j <= i; ++j) {
          keys.push_back(j);
        }
        return keys;
      });
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  const DeviceArray<T> x(qkv), dy(d_out), out(size(rows * width)), d_x(size(rows * 3 * width));
  const DeviceArray<std::int32_t> start(starts);
  const DeviceArray<float> log_sum_exp(size(rows * shape.heads));
  const DeviceArray<char> workspace(size(causal_attention_backward_workspace_bytes(shape)));
  causal_attention(shape, x.data(), start.data(), out.data(), log_sum_exp.data(), nullptr);
  causal_attention_backward(shape, x.data(), start.data(), out.data(), log_sum_exp.data(),
                            dy.data(), d_x.data(), workspace.data(), nullptr);
  const std::int64_t reduction = 2 * (shape.head_width + shape.length);
  expect_near<T>(name_of(c) + ", out", out.doubles(), expected.out, width, reduction, c.factor);
  expect_near<float>(name_of(c) + ", log_sum_exp", log_sum_exp.doubles(), expected.log_sum_exp,
                     shape.heads, reduction, c.factor);
  expect_near<T>(name_of(c) + ", d_qkv", d_x.doubles(), expected.d_qkv, width, reduction, c.factor);
}

TYPED_TEST(CausalAttention, AgreesWithTheReference) {
  const std::vector<Case> cases = {
      {{2, 1, 1, 32}},
      {{1, 17, 3, 64}, Starts::documents},
      {{2, 65, 2, 32}, Starts::any},
      {{1, 130, 1, 64}, Starts::any},
      {{1, 130, 1, 128}},
      {{1, 130, 2, 96}, Starts::documents},
      {{1, 65, 1, 128}, Starts::any},
      {{1, 300, 1, 32}, Starts::documents},  // whole tiles are skipped
      {{1, 200, 1, 64}, Starts::edges},
      {{1, 260, 1, 96}, Starts::edges},
      {{1, 130, 1, 64}, Starts::documents, 4},  // weights near 0 and 1, bases that rise
      {{2, 17, 2, 21}, Starts::any},
      {{1, 65, 1, 80}, Starts::documents},
      {{1, 40, 1, 160}, Starts::any},  // small tiles
  };
  for (const Case& c : cases) run_case<TypeParam>(c);
}

// Blocks of A100 and H100 have 163 and 227 KiB of shared memory, of 8.6, 8.9 and 12.0 99.
TEST(CausalAttentionOnTensorCores, IsForHeadsThatFitTheSharedMemory) {
  for (const std::int64_t width : {32, 64, 96, 128}) {
    EXPECT_TRUE(has_tensor_core_kernels(width, 163 * 1024)) << width;
    EXPECT_EQ(has_tensor_core_kernels(width, 99 * 1024), width <= 96) << width;
  }
  EXPECT_FALSE(has_tensor_core_kernels(80, 227 * 1024));
}

TYPED_TEST(CausalAttention, NothingToDo) {
  causal_attention<TypeParam>({0, 16, 2, 32}, nullptr, nullptr, nullptr, nullptr, nullptr);
  causal_attention_backward<TypeParam>({0, 16, 2, 32}, nullptr, nullptr, nullptr, nullptr, nullptr,
                                       nullptr, nullptr, nullptr);
}

TYPED_TEST(CausalAttention, AHeadTooWideIsAnError) {
  try {
    causal_attention<TypeParam>({1, 4, 1, 2000}, nullptr, nullptr, nullptr, nullptr, nullptr);
    FAIL() << "no error";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("2000 elements"), std::string::npos) << error.what();
  }
}

TYPED_TEST(CausalAttention, IsTheSameInAnyOrderOfBlocks) {
  using T = TypeParam;
  const CausalShape shape{1, 150, 2, 64};
  const std::int64_t rows = shape.length, width = 128;
  const Case c{shape, Starts::documents, 1};
  const DeviceArray<T> x(normal_values<T>(rows * 3 * width, 1));
  const DeviceArray<T> dy(normal_values<T>(rows * width, 2));
  const DeviceArray<std::int32_t> start(starts_of(c));
  const DeviceArray<char> workspace(
      static_cast<std::size_t>(causal_attention_backward_workspace_bytes(shape)));
  std::vector<T> first;
  for (int turn = 0; turn < 2; ++turn) {  // blocks and threads come in another order each time
    const DeviceArray<T> out(static_cast<std::size_t>(rows * width));
    const DeviceArray<T> d_x(static_cast<std::size_t>(rows * 3 * width));
    const DeviceArray<float> log_sum_exp(static_cast<std::size_t>(rows * shape.heads));
    causal_attention(shape, x.data(), start.data(), out.data(), log_sum_exp.data(), nullptr);
    causal_attention_backward(shape, x.data(), start.data(), out.data(), log_sum_exp.data(),
                              dy.data(), d_x.data(), workspace.data(), nullptr);
    const std::vector<T> found = d_x.values();
    if (turn == 0) {
      first = found;
    } else {
      EXPECT_EQ(std::memcmp(first.data(), found.data(), found.size() * sizeof(T)), 0);
    }
  }
}

template <class T>
class CachedAttention : public ::testing::Test {};
TYPED_TEST_SUITE(CachedAttention, KernelTypes, TypeNames);

/// Rows come in three calls, as a prompt and two tokens would.
template <class T>
void run_cached(std::int64_t heads, std::int64_t head_width, std::int64_t prompt) {
  const std::int64_t rows = prompt + 2, width = heads * head_width;
  const auto qkv = normal_values<T>(rows * 3 * width, 5);
  const AttentionReference expected =
      attention_reference(rows, heads, head_width, doubles_of(qkv),
                          Doubles(static_cast<std::size_t>(rows * width)), [](std::int64_t i) {
                            std::vector<std::int64_t> keys;
                            for (std::int64_t j = 0; j <= i; ++j) keys.push_back(j);
                            return keys;
                          });
  const DeviceArray<T> x(qkv), out(static_cast<std::size_t>(rows * width));
  const DeviceArray<T> cache(static_cast<std::size_t>((rows + 3) * 2 * width));
  for (const std::int64_t past : {std::int64_t{0}, prompt, prompt + 1}) {
    cached_attention(x.data() + past * 3 * width, cache.data(), past, heads, head_width,
                     out.data() + past * width, past == 0 ? prompt : 1, nullptr);
  }
  const std::string name = std::to_string(rows) + " rows, " + std::to_string(heads) + " heads of " +
                           std::to_string(head_width);
  expect_near<T>(name + ", out", out.doubles(), expected.out, width, head_width + rows);
  const Doubles cached = cache.doubles(), source = doubles_of(qkv);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t e = 0; e < 2 * width; ++e) {
      ASSERT_EQ(cached[static_cast<std::size_t>(i * 2 * width + e)],
                source[static_cast<std::size_t>(i * 3 * width + width + e)]);
    }
  }
  EXPECT_TRUE(std::isnan(cached[static_cast<std::size_t>(rows * 2 * width)]));  // not touched
}

TYPED_TEST(CachedAttention, AgreesWithTheReference) {
  run_cached<TypeParam>(2, 64, 5);
  run_cached<TypeParam>(1, 8, 1);
  run_cached<TypeParam>(3, 21, 9);
  run_cached<TypeParam>(1, 320, 3);
  run_cached<TypeParam>(2, 96, 33);
  run_cached<TypeParam>(1, 200, 2);
  run_cached<TypeParam>(1, 101, 2);
}

}  // namespace
}  // namespace scone::cuda
