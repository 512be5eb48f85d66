#include "checkpoint/checkpoint_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <map>
#include <random>
#include <set>

#include "checkpoint/checkpoint.h"
#include "checkpoint/slice_file.h"
#include "data/hdf5_file.h"
#include "failing_sync.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

/// Tensors whose element i is a number made of the name and i.
using Shapes = std::map<std::string, Shape>;

float element(const std::string& name, std::int64_t index) {
  return static_cast<float>(name.size() * 1000003 % 97) + static_cast<float>(index % 8388593);
}

std::int64_t flat_index(const Shape& shape, const Shape& index) {
  std::int64_t flat = 0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) flat = flat * shape[axis] + index[axis];
  return flat;
}

/// Calls visit(place in the box, flat index in the tensor).
template <class Visit>
void for_each_element(const TensorSlice& slice, const Visit& visit) {
  const Shape& extent = slice.values.shape();
  for (std::int64_t place = 0; place < slice.values.elements(); ++place) {
    Shape index(extent.size());
    std::int64_t rest = place;
    for (std::size_t axis = extent.size(); axis-- > 0;) {
      index[axis] = slice.begin[axis] + rest % extent[axis];
      rest /= extent[axis];
    }
    visit(place, flat_index(slice.global_shape, index));
  }
}

TensorSlice make_slice(const std::string& name, const Shape& shape, const Box& box, bool fill) {
  TensorSlice slice{name, shape, box.begin, Tensor::zeros(box.extent)};
  if (fill) {
    float* values = slice.values.data<float>();
    for_each_element(slice, [&](auto place, auto flat) { values[place] = element(name, flat); });
  }
  return slice;
}

std::int64_t below(std::mt19937_64& random, std::int64_t n) {
  return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
}

/// Cuts a box at random; some pieces are empty.
void cut(std::mt19937_64& random, const Box& box, int depth, std::vector<Box>& pieces) {
  if (depth == 0 || box.extent.empty()) {
    pieces.push_back(box);
    return;
  }
  const auto axis =
      static_cast<std::size_t>(below(random, static_cast<std::int64_t>(box.extent.size())));
  const std::int64_t at = below(random, box.extent[axis] + 1);
  Box low = box, high = box;
  low.extent[axis] = at;
  high.begin[axis] += at;
  high.extent[axis] -= at;
  cut(random, low, depth - 1, pieces);
  cut(random, high, depth - 1, pieces);
}

/// Every rank's slices: each tensor cut into boxes that random ranks hold.
std::vector<std::vector<TensorSlice>> scatter(const Shapes& shapes, int ranks, std::uint64_t seed,
                                              bool fill) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<TensorSlice>> slices(static_cast<std::size_t>(ranks));
  for (const auto& [name, shape] : shapes) {
    std::vector<Box> pieces;
    cut(random, {Shape(shape.size(), 0), shape}, static_cast<int>(below(random, 4)), pieces);
    for (const Box& piece : pieces) {
      slices[static_cast<std::size_t>(below(random, ranks))].push_back(
          make_slice(name, shape, piece, fill));
    }
  }
  return slices;
}

/// Long rows, short rows, one axis to three, none, and no elements.
const Shapes& shapes() {
  static const Shapes value = {
      {"parameters/main.long", {3, 50000}}, {"parameters/main.wide", {70, 6000}},
      {"parameters/main.tall", {3000, 7}},  {"adam_m/main.cube", {11, 6, 13}},
      {"adam_v/main.vector", {1001}},       {"adam_v/main.one", {}},
      {"adam_v/main.none", {0, 5}}};
  return value;
}

CheckpointManifest manifest_of(std::int64_t step) {
  CheckpointManifest manifest;
  manifest.step = step;
  manifest.run = {{"seed", 5}};
  return manifest;
}

/// One collective save on thread ranks; returns each rank's outcome.
std::vector<SaveOutcome> save(const fs::path& folder, std::int64_t step,
                              const std::vector<std::vector<TensorSlice>>& slices,
                              const CheckpointOptions& options = {}) {
  std::vector<SaveOutcome> outcomes(slices.size());
  run_as_threads(static_cast<int>(slices.size()), [&](Communicator& ranks) {
    const auto rank = static_cast<std::size_t>(ranks.rank());
    CheckpointWriter writer(folder, ranks.split(0, "checkpoint"), options);
    writer.save(manifest_of(step), slices[rank]);
    writer.wait();
    outcomes[rank] = writer.take_outcome().value();
    EXPECT_FALSE(writer.take_outcome());  // told once
  });
  return outcomes;
}

TEST(CheckpointWriter, AnyBoxesOnAnyRanksReadBackAsAnyOthers) {
  std::int64_t compared = 0;
  for (const int writers : {1, 2, 3, 4}) {
    const TemporaryFolder folder;
    const auto seed = static_cast<std::uint64_t>(writers);
    const auto outcomes = save(folder.path(), 7, scatter(shapes(), writers, seed, true));
    for (const SaveOutcome& outcome : outcomes) {
      ASSERT_TRUE(outcome.saved()) << outcome.error;
      EXPECT_EQ(outcome.path, folder.path() / "step-00000007");
      EXPECT_GT(outcome.bytes, 4 * (3 * 50000 + 70 * 6000));
    }
    EXPECT_TRUE(checkpoint_problems(outcomes[0].path).empty());
    for (const int readers : {1, 2, 3, 4}) {
      const auto read =
          scatter(shapes(), readers, seed * 10 + static_cast<std::uint64_t>(readers), false);
      for (const auto& targets : read) {
        read_slices(outcomes[0].path, targets);
        for (const TensorSlice& target : targets) {
          const float* values = target.values.data<float>();
          std::int64_t wrong = 0;
          for_each_element(target, [&](auto place, auto flat) {
            wrong += values[place] == element(target.name, flat) ? 0 : 1;
            ++compared;
          });
          EXPECT_EQ(wrong, 0) << target.name << ", " << writers << " writers, " << readers;
        }
      }
    }
  }
  EXPECT_GT(compared, 9000000);
}

TEST(CheckpointWriter, FilesAreHdf5OfTheBoxesAndIdleRanksWriteNone) {
  const TemporaryFolder folder;
  const Shape shape = {4, 6};
  const auto box = [&](Shape begin, Shape extent) {
    return make_slice("parameters/main.a", shape, {std::move(begin), std::move(extent)}, true);
  };
  const auto outcomes =
      save(folder.path(), 1, {{box({0, 0}, {4, 2})}, {box({4, 0}, {0, 6})}, {box({0, 2}, {4, 4})}});
  ASSERT_TRUE(outcomes[0].saved()) << outcomes[0].error;
  EXPECT_TRUE(fs::exists(outcomes[0].path / "rank-00000.h5"));
  EXPECT_FALSE(fs::exists(outcomes[0].path / "rank-00001.h5"));
  EXPECT_TRUE(fs::exists(outcomes[0].path / "rank-00002.h5"));
  const Hdf5File file = Hdf5File::open(outcomes[0].path / "rank-00002.h5");
  EXPECT_THAT(file.dataset_names(), ::testing::ElementsAre("parameters/main.a@0,2"));
  std::vector<float> values(16);
  file.read("parameters/main.a@0,2", H5T_NATIVE_FLOAT, values.data());
  EXPECT_EQ(values[5], element("parameters/main.a", 6 + 3));
}

// A process that reads what many ranks wrote may have fewer files open than they were.
TEST(SliceFileReader, NeedsFewOpenFiles) {
  const TemporaryFolder folder;
  constexpr int kFiles = 300;
  const TensorSlice slice = make_slice("t", {2}, {{0}, {2}}, true);
  SliceFile written;
  for (int rank = 0; rank < kFiles; ++rank)
    written = write_slice_file(folder.path() / slice_file_name(rank), std::span(&slice, 1));
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few{kFiles, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  TensorSlice read = make_slice("t", {2}, {{0}, {2}}, false);
  try {
    SliceFileReader reader(folder.path());
    for (int round = 0; round < 2; ++round)
      for (int rank = 0; rank < kFiles; ++rank)
        EXPECT_EQ(reader.read(slice_file_name(rank), written.offsets[0], {{0}, {2}}, read), 2);
  } catch (const std::exception& error) {
    ADD_FAILURE() << error.what();
  }
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_TRUE(std::ranges::equal(read.values.span<float>(), slice.values.span<float>()));
}

TEST(CheckpointWriter, RefusesBoxesThatDoNotMakeTheTensorOnAllRanks) {
  const TemporaryFolder folder;
  const auto slice = [](const Shape& shape, const Box& box) {
    return make_slice("adam_m/main.a", shape, box, true);
  };
  const auto error = [&](const TensorSlice& a, const TensorSlice& b) {
    const auto outcomes = save(folder.path(), 3, {{a}, {b}});
    EXPECT_EQ(outcomes[0].error, outcomes[1].error);
    EXPECT_TRUE(outcomes[0].path.empty());
    EXPECT_TRUE(fs::is_empty(folder.path()) || !fs::exists(folder.path()));
    return outcomes[0].error;
  };
  const Box left{{0, 0}, {4, 3}};
  EXPECT_THAT(error(slice({4, 6}, left), slice({4, 6}, {{0, 2}, {4, 3}})),
              AllOf(HasSubstr("step-00000003 was not written"), HasSubstr("adam_m/main.a"),
                    HasSubstr("overlap")));
  EXPECT_THAT(error(slice({4, 6}, left), slice({4, 6}, {{0, 4}, {4, 2}})),
              HasSubstr("20 of its 24 elements"));
  EXPECT_THAT(error(slice({4, 6}, left), slice({4, 7}, {{0, 3}, {4, 3}})),
              HasSubstr("[4, 6] on one rank, [4, 7] on another"));
  EXPECT_THAT(error(slice({4, 6}, left), slice({4, 6}, {{0, 3}, {4, 4}})), HasSubstr("inside"));
}

std::vector<std::vector<TensorSlice>> small_slices(int ranks) {
  return scatter({{"parameters/main.a", {40, 30}}, {"parameters/main.b", {64}}}, ranks, 5, true);
}

TEST(CheckpointWriter, KeepsTheNewestAndThePermanentOnes) {
  const TemporaryFolder folder;
  const auto slices = small_slices(2);
  const auto steps = [&] {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      names.insert(entry.path().filename().string().substr(11));
    }
    return names;
  };
  for (const std::int64_t step : {10, 20, 25, 30, 40, 45}) {
    ASSERT_TRUE(save(folder.path(), step, slices, {.keep = 2, .permanent_every = 20})[0].saved());
  }
  EXPECT_THAT(steps(), ::testing::ElementsAre("20", "40", "45"));
  // A run that went back: later ones stay until it replaces them.
  ASSERT_TRUE(save(folder.path(), 30, slices, {.keep = 1})[0].saved());
  EXPECT_THAT(steps(), ::testing::ElementsAre("30", "40", "45"));
  ASSERT_TRUE(save(folder.path(), 45, slices, {.keep = 1})[0].saved());
  EXPECT_THAT(steps(), ::testing::ElementsAre("45"));
}

/// The process may write files of this size at most, as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

TEST(CheckpointWriter, AFailedWriteOfOneRankKeepsTheOldCheckpointAndTellsAll) {
  const TemporaryFolder folder;
  const auto slices = [](const Shape& of_rank_one) {
    return std::vector<std::vector<TensorSlice>>{
        {make_slice("a", {10}, {{0}, {10}}, true)},
        {make_slice("b", of_rank_one, {{0, 0}, of_rank_one}, true)}};
  };
  ASSERT_TRUE(save(folder.path(), 1, slices({10, 10}))[0].saved());
  for (const bool async : {false, true}) {
    const FileSizeLimit limit(100000);
    const auto outcomes = save(folder.path(), 2, slices({1000, 100}), {.async = async});
    for (const SaveOutcome& outcome : outcomes) {
      EXPECT_THAT(outcome.error, AllOf(HasSubstr("rank 1: "), HasSubstr("rank-00001.h5")));
      EXPECT_TRUE(outcome.path.empty());
    }
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
    EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000001");
  }
  // The same writer goes on when there is space again.
  run_as_threads(2, [&](Communicator& ranks) {
    CheckpointWriter writer(folder.path(), ranks.split(0, "checkpoint"), {});
    const auto own = slices({1000, 100})[static_cast<std::size_t>(ranks.rank())];
    std::optional<FileSizeLimit> limit;
    if (ranks.rank() == 0) limit.emplace(100000);
    ranks.barrier();
    writer.save(manifest_of(2), own);
    EXPECT_FALSE(writer.take_outcome()->saved());
    ranks.barrier();
    limit.reset();
    ranks.barrier();
    writer.save(manifest_of(3), own);
    EXPECT_TRUE(writer.take_outcome()->saved());
  });
  EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000003");
}

TEST(CheckpointWriter, AFailureIsToldThoughTheNextSaveStartsFirst) {
  const TemporaryFolder folder;
  const auto slices = small_slices(2);
  run_as_threads(2, [&](Communicator& ranks) {
    const auto own = slices[static_cast<std::size_t>(ranks.rank())];
    CheckpointWriter writer(folder.path() / "run", ranks.split(0, "checkpoint"), {.async = true});
    if (ranks.rank() == 0) std::ofstream(folder.path() / "run") << "no folder";
    ranks.barrier();
    writer.save(manifest_of(1), own);
    writer.wait();
    ranks.barrier();
    if (ranks.rank() == 0) fs::remove(folder.path() / "run");
    ranks.barrier();
    writer.save(manifest_of(2), own);
    writer.close();
    const auto first = writer.take_outcome(), second = writer.take_outcome();
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->step, 1);
    EXPECT_FALSE(first->saved());
    EXPECT_EQ(second->step, 2);
    EXPECT_TRUE(second->saved()) << second->error;
    EXPECT_FALSE(writer.take_outcome());
  });
}

TEST(CheckpointWriter, ACheckpointInItsPlaceThatIsNotSyncedIsSavedWithAWarning) {
  const TemporaryFolder folder;
  const auto slices = small_slices(2);
  const CheckpointOptions one = {.keep = 1};
  ASSERT_TRUE(save(folder.path(), 1, slices, one)[0].saved());
  const auto exists = [&](const char* name) { return fs::exists(folder.path() / name); };
  for (int times = 0; times < 2; ++times) {  // a new one, and in the place of another
    const FailingSync failing(folder.path());
    for (const SaveOutcome& outcome : save(folder.path(), 2, slices, one)) {
      EXPECT_TRUE(outcome.saved()) << outcome.error;
      EXPECT_EQ(outcome.path, folder.path() / "step-00000002");
      EXPECT_THAT(outcome.warning,
                  AllOf(HasSubstr("step-00000002 is in its place, but a crash of the machine may "
                                  "undo that: "),
                        HasSubstr("cannot be synced to disk"), HasSubstr("older ones are kept")));
    }
    EXPECT_TRUE(checkpoint_problems(folder.path() / "step-00000002").empty());
    EXPECT_TRUE(exists("step-00000001"));
  }
  EXPECT_TRUE(exists("step-00000002.tmp"));  // what was replaced
  const auto outcomes = save(folder.path(), 3, slices, one);
  EXPECT_TRUE(outcomes[0].saved() && outcomes[0].warning.empty()) << outcomes[0].warning;
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(CheckpointWriter, AsynchronousEqualsSynchronousThoughTheCallerWritesOn) {
  const TemporaryFolder folder;
  const auto slices = scatter(shapes(), 3, 99, true);
  const std::vector<SaveOutcome> expected = save(folder.path() / "sync", 2, slices);
  ASSERT_TRUE(expected[0].saved()) << expected[0].error;
  run_as_threads(3, [&](Communicator& ranks) {
    const auto own = slices[static_cast<std::size_t>(ranks.rank())];
    CheckpointWriter writer(folder.path() / "async", ranks.split(0, "checkpoint"), {.async = true});
    for (const std::int64_t step : {1, 2}) {
      if (step == 2) {
        for (const TensorSlice& slice : own) {
          float* values = slice.values.data<float>();
          for_each_element(
              slice, [&](auto place, auto flat) { values[place] = element(slice.name, flat); });
        }
      }
      writer.save(manifest_of(step), own);
      for (const TensorSlice& slice : own) {
        for (float& value : slice.values.span<float>()) value = -1;
      }
    }
    writer.wait();
    EXPECT_TRUE(writer.take_outcome()->saved());
  });
  for (const auto& entry : fs::directory_iterator(expected[0].path)) {
    const fs::path name = entry.path().filename();
    EXPECT_EQ(read_bytes(entry.path()), read_bytes(folder.path() / "async/step-00000002" / name))
        << name;
  }
  EXPECT_TRUE(checkpoint_problems(folder.path() / "async/step-00000001").empty());
}

}  // namespace
}  // namespace scone
