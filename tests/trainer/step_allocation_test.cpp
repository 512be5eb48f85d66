// A step takes no memory that the steps before it did not have.

#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "model/ops/ops.h"
#include "tiny_data.h"
#include "trainer/trainer.h"

namespace {

constexpr std::size_t kLarge = 4096;  // bytes; messages and metrics are smaller

std::atomic<bool> counts{false};
std::atomic<int> large_blocks{0};
std::atomic<std::size_t> largest_block{0};

void count(std::size_t bytes) {
  if (!counts || bytes < kLarge) return;
  ++large_blocks;
  largest_block = std::max(largest_block.load(), bytes);
}

void* counted(std::size_t bytes, std::size_t alignment) {
  count(bytes);
  void* memory = memalign(alignment, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// In place of the library's, for the whole program: of C++, of OpenMP's threads, and what Tensor
// calls.
void* operator new(std::size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  count(bytes);
  return memalign(alignment, bytes);
}

namespace scone {
namespace {

class StepAllocationTest : public ::testing::TestWithParam<DType> {};

TEST_P(StepAllocationTest, NoneAfterTheFirstSteps) {
  const TinyData data;
  RunConfig config = data.run("run", 2);
  config.compute.dtype = GetParam();
  config.trainer.microbatch_tokens = 128;
  const auto self = make_self_communicator();
  Trainer trainer(config, cpu_backend(), *self);
  // The largest batches so far are among the first; one with more f-grams than any before may yet
  // make a buffer longer.
  constexpr int kFirst = 30, kMore = 30;
  const auto run = [&](int steps) {
    large_blocks = 0;
    counts = true;
    for (int step = 0; step < steps; ++step) trainer.train_step();
    counts = false;
    return large_blocks.load();
  };
  const int first = run(kFirst), more = run(kMore);
  std::printf(
      "%s: %d large blocks in the first %d steps, %d in %d more, the largest of %zu bytes\n",
      name_of(GetParam()), first, kFirst, more, kMore, largest_block.load());
  EXPECT_GT(first, 0);  // it does count
  EXPECT_EQ(more, 0);
}

INSTANTIATE_TEST_SUITE_P(Types, StepAllocationTest, ::testing::Values(DType::fp32, DType::bf16),
                         [](const auto& type) { return std::string(name_of(type.param)); });

}  // namespace
}  // namespace scone
