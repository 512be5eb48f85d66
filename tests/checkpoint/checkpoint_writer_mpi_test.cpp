#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

/// Rank r's rows of a tensor of 100 rows a rank, each element the step.
TensorSlice rows_of(const Communicator& world, std::int64_t step) {
  TensorSlice slice{"parameters/main.a",
                    {100 * world.size(), 50},
                    {100 * world.rank(), 0},
                    Tensor::zeros({100, 50})};
  for (float& value : slice.values.span<float>()) value = static_cast<float>(step);
  return slice;
}

/// The writer's thread agrees with the others' while the ranks themselves go on reducing.
TEST(CheckpointWriterMpi, SavesWhileTheRanksWorkOn) {
  const auto world = make_mpi_communicator();
  std::unique_ptr<TemporaryFolder> folder;
  if (world->rank() == 0) folder = std::make_unique<TemporaryFolder>();
  const fs::path path = world->broadcast_string(folder ? folder->path().string() : "", 0);
  CheckpointWriter writer(path, world->split(0, "checkpoint"), {.keep = 2, .async = true});
  std::vector<std::int64_t> saved;
  const auto take_outcomes = [&] {
    while (const auto outcome = writer.take_outcome()) {
      EXPECT_TRUE(outcome->saved()) << outcome->error;
      saved.push_back(outcome->step);
    }
  };
  for (std::int64_t step = 1; step <= 5; ++step) {
    const std::vector<TensorSlice> slices = {rows_of(*world, step)};
    CheckpointManifest manifest;
    manifest.step = step;
    writer.save(manifest, slices);
    take_outcomes();
    std::vector<float> ones(1000, 1.0F);
    for (int i = 0; i < 20; ++i) {
      std::fill(ones.begin(), ones.end(), 1.0F);
      world->all_reduce(std::span<float>(ones), ReduceOp::sum);
      ASSERT_EQ(ones[999], static_cast<float>(world->size()));
    }
  }
  writer.wait();
  take_outcomes();
  EXPECT_EQ(saved, std::vector<std::int64_t>({1, 2, 3, 4, 5}));
  // Every rank reads its neighbour's rows.
  EXPECT_EQ(find_checkpoint(path), path / "step-00000005");
  const std::int64_t neighbour = (world->rank() + 1) % world->size();
  const std::vector<TensorSlice> target = {{"parameters/main.a",
                                            {100 * world->size(), 50},
                                            {100 * neighbour, 0},
                                            Tensor::zeros({100, 50})}};
  read_slices(path / "step-00000005", target);
  for (const float value : target[0].values.span<float>()) ASSERT_EQ(value, 5.0F);
  world->barrier();
}

}  // namespace
}  // namespace scone
