#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <random>
#include <thread>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_writer.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

CheckpointManifest manifest_of(std::int64_t step) {
  CheckpointManifest manifest;
  manifest.step = step;
  return manifest;
}

/// Rows of a tensor of which every element is `value`.
TensorSlice rows(const std::string& name, std::int64_t all, std::int64_t begin, std::int64_t count,
                 float value) {
  TensorSlice slice{name, {all, 64}, {begin, 0}, Tensor::zeros({count, 64})};
  for (float& element : slice.values.span<float>()) element = value;
  return slice;
}

fs::path save_on_three_ranks(const fs::path& folder, std::int64_t step) {
  run_as_threads(3, [&](Communicator& ranks) {
    CheckpointWriter writer(folder, ranks.split(0, "checkpoint"), {.keep = 0});
    const std::vector<TensorSlice> slices = {
        rows("parameters/main.a", 30, 10 * ranks.rank(), 10, static_cast<float>(step))};
    writer.save(manifest_of(step), slices);
    EXPECT_TRUE(writer.take_outcome()->saved());
  });
  return folder / fs::path("step-0000000" + std::to_string(step));
}

/// A kind of damage to one file.
struct Damage {
  const char* name;
  std::function<void(const fs::path&, std::mt19937_64&)> apply;
};

const std::vector<Damage>& damages() {
  static const std::vector<Damage> value = {
      {"truncated",
       [](const fs::path& file, std::mt19937_64& random) {
         fs::resize_file(file, random() % fs::file_size(file));
       }},
      {"a byte flipped",
       [](const fs::path& file, std::mt19937_64& random) {
         flip_byte(file, static_cast<std::int64_t>(random() % fs::file_size(file)));
       }},
      {"a byte appended", [](const fs::path& file,
                             std::mt19937_64&) { fs::resize_file(file, fs::file_size(file) + 1); }},
      {"removed", [](const fs::path& file, std::mt19937_64&) { fs::remove(file); }}};
  return value;
}

TEST(CheckpointDamage, ThePreviousOneIsTakenAndTheFileNamed) {
  const TemporaryFolder folder;
  const fs::path older = save_on_three_ranks(folder.path(), 1);
  std::mt19937_64 random(1);
  int rounds = 0;
  for (const char* name : {"manifest.json", "rank-00000.h5", "rank-00001.h5", "rank-00002.h5"}) {
    for (const Damage& damage : damages()) {
      for (int repeat = 0; repeat < 4; ++repeat, ++rounds) {
        const fs::path newer = save_on_three_ranks(folder.path(), 2);
        ASSERT_EQ(find_checkpoint(folder.path()), newer);
        damage.apply(newer / name, random);
        std::vector<std::string> skipped;
        EXPECT_EQ(find_checkpoint(folder.path(), &skipped), older) << name << ' ' << damage.name;
        ASSERT_EQ(skipped.size(), 1U);
        EXPECT_THAT(skipped[0], HasSubstr((newer / name).string())) << damage.name;
      }
    }
  }
  EXPECT_EQ(rounds, 64);
}

TEST(CheckpointDamage, WhereNoneIsValidAllAreReported) {
  const TemporaryFolder folder;
  std::mt19937_64 random(2);
  const char* files[] = {"manifest.json", "rank-00002.h5", "rank-00000.h5", "rank-00001.h5"};
  for (int i = 0; i < 4; ++i) {
    const fs::path path = save_on_three_ranks(folder.path(), i + 1);
    damages()[static_cast<std::size_t>(i)].apply(path / files[i], random);
  }
  std::vector<std::string> skipped;
  EXPECT_FALSE(find_checkpoint(folder.path(), &skipped));
  ASSERT_EQ(skipped.size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_THAT(skipped[i], HasSubstr(files[3 - i]));
  }
}

/// 40 tensors of which every element is the step.
bool save_step(CheckpointWriter& writer, std::int64_t step) {
  std::vector<TensorSlice> slices;
  for (int i = 0; i < 40; ++i) {
    slices.push_back(
        rows("parameters/main.t" + std::to_string(i), 64, 0, 64, static_cast<float>(step)));
  }
  writer.save(manifest_of(step), slices);
  return writer.take_outcome()->saved();
}

/// In a child process: saves step after step until it is killed; tells when it begins (the step
/// before), and each finished one.
[[noreturn]] void save_forever(const fs::path& folder, std::int64_t step, int tell) {
  CheckpointWriter writer(folder, make_self_communicator(), {.keep = 2});
  --step;
  for (;;) {
    if (::write(tell, &step, sizeof step) != sizeof step) std::_Exit(4);
    if (!save_step(writer, ++step)) std::_Exit(3);
  }
}

TEST(CheckpointDamage, AKilledWriterLeavesAValidOne) {
  const TemporaryFolder folder;
  std::mt19937_64 random(3);
  int within_a_save = 0;
  std::int64_t saved = 1;
  {
    CheckpointWriter writer(folder.path(), make_self_communicator(), {});
    ASSERT_TRUE(save_step(writer, saved));
  }
  // SCONE_KILL_ROUNDS=2000 makes a storm of it.
  const char* given = std::getenv("SCONE_KILL_ROUNDS");
  const int rounds = given == nullptr ? 20 : std::atoi(given);
  for (int round = 0; round < rounds; ++round) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    // Every other child begins with the newest step, and replaces it.
    const std::int64_t first = saved + round % 2;
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(pipe_ends[0]);
      save_forever(folder.path(), first, pipe_ends[1]);
    }
    ::close(pipe_ends[1]);
    std::int64_t told = 0;
    ASSERT_EQ(::read(pipe_ends[0], &told, sizeof told), ssize_t{sizeof told});
    std::this_thread::sleep_for(
        std::chrono::microseconds(random() % (round % 2 == 0 ? 10000 : 30000)));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended with status " << status;
    while (::read(pipe_ends[0], &told, sizeof told) == ssize_t{sizeof told}) {
    }
    ::close(pipe_ends[0]);

    std::vector<std::string> skipped;
    const auto found = find_checkpoint(folder.path(), &skipped);
    ASSERT_TRUE(found) << "round " << round;
    EXPECT_TRUE(skipped.empty()) << skipped[0];
    saved = read_manifest(*found).step;
    EXPECT_TRUE(saved == told || saved == told + 1) << saved << " found, " << told << " told";
    const std::vector<TensorSlice> target = {rows("parameters/main.t39", 64, 0, 64, -1)};
    read_slices(*found, target);
    for (const float value : target[0].values.span<float>()) {
      ASSERT_EQ(value, static_cast<float>(saved));
    }
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      within_a_save += entry.path().extension() == ".tmp" ? 1 : 0;
    }
  }
  std::printf("%d writers killed, %d of them within a save; %ld steps saved\n", rounds,
              within_a_save, static_cast<long>(saved));
  EXPECT_GT(within_a_save, 2);
}

}  // namespace
}  // namespace scone
