#include "checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_manifest.h"
#include "checkpoint/durable_file.h"
#include "parallel/error.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

Tensor numbered(Shape shape, float first) {
  Tensor tensor = Tensor::zeros(std::move(shape));
  for (float& value : tensor.span<float>()) value = first++;
  return tensor;
}

CheckpointManifest manifest_of(std::int64_t step) {
  CheckpointManifest manifest;
  manifest.step = step;
  manifest.tokens = 64 * step;
  manifest.model = {{"width", 3}};
  manifest.run = {{"seed", 5}};
  manifest.data = {{"epoch", 1}};
  return manifest;
}

fs::path write_step(const fs::path& folder, std::int64_t step, int keep = 0) {
  const std::vector<NamedTensor> tensors = {
      {"parameters/main.a", numbered({4, 3}, static_cast<float>(step))},
      {"adam_m/main.a", numbered({4, 3}, 0.5F)}};
  return write_checkpoint(folder, manifest_of(step), tensors, keep);
}

TEST(Checkpoint, ReadsBackWhatWasWritten) {
  const TemporaryFolder folder;
  const fs::path path = write_step(folder.path(), 1000);
  EXPECT_EQ(path.filename(), "step-00001000");
  EXPECT_TRUE(checkpoint_problems(path).empty());
  const CheckpointManifest manifest = read_manifest(path);
  EXPECT_EQ(manifest.step, 1000);
  EXPECT_EQ(manifest.tokens, 64000);
  EXPECT_EQ(manifest.run.at("seed"), 5);
  EXPECT_TRUE(manifest.fgrams.is_null());
  const Tensor a = Tensor::zeros({4, 3}), m = Tensor::zeros({4, 3});
  const std::vector<NamedTensor> tensors = {{"parameters/main.a", a}, {"adam_m/main.a", m}};
  read_tensors(path, tensors);
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(a.data<float>()[i], 1000.0F + static_cast<float>(i));
    EXPECT_EQ(m.data<float>()[i], 0.5F + static_cast<float>(i));
  }
}

TEST(Checkpoint, ReadsIntoAParameterSet) {
  const TemporaryFolder folder;
  const TinyRun run(folder.path());
  ParameterSet read(std::vector<ParameterSpec>{run.main_parameters.spec(0)}, Device::cpu);
  read_parameters(run.checkpoint, read);
  const auto expected = run.main_parameters.value(0).span<float>();
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), read.value(0).data<float>()));
}

TEST(Checkpoint, NamesTheTensorThatDoesNotFit) {
  const TemporaryFolder folder;
  const fs::path path = write_step(folder.path(), 1);
  const auto message = [&](const NamedTensor& tensor) -> std::string {
    try {
      read_tensors(path, std::span(&tensor, 1));
    } catch (const InputError& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  EXPECT_THAT(message({"parameters/main.b", Tensor::zeros({4, 3})}),
              HasSubstr("parameters/main.b"));
  EXPECT_THAT(message({"parameters/main.a", Tensor::zeros({3, 4})}),
              HasSubstr("expected the shape [3, 4], found [4, 3]"));
}

TEST(Checkpoint, KeepsTheNewestAndReplacesItsOwnStep) {
  const TemporaryFolder folder;
  for (const std::int64_t step : {10, 20, 30, 30}) write_step(folder.path(), step, 2);
  EXPECT_FALSE(fs::exists(folder.path() / "step-00000010"));
  EXPECT_TRUE(fs::exists(folder.path() / "step-00000020"));
  EXPECT_TRUE(fs::exists(folder.path() / "step-00000030"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 2);
}

TEST(Checkpoint, RemovesWhatAKilledWriterLeft) {
  const TemporaryFolder folder;
  for (const char* left : {"step-00000005.tmp", "step-00000003.removed.tmp"}) {
    fs::create_directories(folder.path() / left);
    std::ofstream(folder.path() / left / "rank-00000.h5") << "half";
  }
  EXPECT_FALSE(find_checkpoint(folder.path()));
  write_step(folder.path(), 6);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1);
}

TEST(Checkpoint, OneSetAsideByAKilledWriterIsFoundAndPutBack) {
  const TemporaryFolder folder;
  fs::rename(write_step(folder.path(), 5), folder.path() / "step-00000005.aside.tmp");
  EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000005.aside.tmp");
  write_step(folder.path(), 6);
  EXPECT_TRUE(checkpoint_problems(folder.path() / "step-00000005").empty());
  EXPECT_EQ(find_checkpoint(folder.path()), folder.path() / "step-00000006");
}

TEST(Checkpoint, FindsTheNewestValidOne) {
  const TemporaryFolder run;
  const fs::path folder = run.path() / "checkpoints";
  for (const std::int64_t step : {9, 10, 11, 12, 13}) write_step(folder, step);
  flip_byte(folder / "step-00000013/rank-00000.h5", 3000);
  fs::resize_file(folder / "step-00000012/rank-00000.h5", 500);
  fs::remove(folder / "step-00000011/manifest.json");
  std::vector<std::string> skipped;
  for (const fs::path& given : {run.path(), folder}) {
    skipped.clear();
    const auto found = find_checkpoint(given, &skipped);
    ASSERT_TRUE(found);
    EXPECT_EQ(*found, folder / "step-00000010");
    ASSERT_EQ(skipped.size(), 3U);
    EXPECT_THAT(skipped[0], HasSubstr("checksum"));
    EXPECT_THAT(skipped[1], HasSubstr("truncated"));
    EXPECT_THAT(skipped[2], HasSubstr("manifest.json"));
  }
  EXPECT_EQ(find_checkpoint(folder / "step-00000009/"), folder / "step-00000009");
  EXPECT_FALSE(find_checkpoint(folder / "step-00000013"));
  EXPECT_FALSE(find_checkpoint(run.path() / "nowhere"));
}

// Or a run would begin anew at a moment's trouble with its disk. A link to itself stands for one
// that cannot be read.
TEST(Checkpoint, AFolderThatCannotBeReadIsNotOneWithoutCheckpoints) {
  const TemporaryFolder folder;
  const fs::path checkpoints = folder.path() / "checkpoints";
  EXPECT_FALSE(find_checkpoint(folder.path()));
  fs::create_symlink("checkpoints", checkpoints);
  const auto refused = [&](const char* why) {
    try {
      find_checkpoint(folder.path());
      ADD_FAILURE() << "nothing was thrown";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), ::testing::AllOf(HasSubstr(checkpoints.string()), HasSubstr(why)));
    }
  };
  refused("Too many levels of symbolic links");
  EXPECT_THROW(list_checkpoints(checkpoints), InputError);
  fs::remove(checkpoints);
  std::ofstream(checkpoints) << "a file";
  refused("expected a folder of checkpoints: it is none");
  fs::remove(checkpoints);
  fs::create_symlink("elsewhere", checkpoints);  // which is not mounted
  refused("No such file or directory");
  fs::remove(checkpoints);

  const fs::path saved = write_step(checkpoints, 5);
  fs::create_symlink("step-00000007", checkpoints / "step-00000007");
  std::vector<std::string> skipped;
  EXPECT_EQ(find_checkpoint(folder.path(), &skipped), saved);
  EXPECT_THAT(skipped, ::testing::ElementsAre(HasSubstr("step-00000007")));
}

TEST(Checkpoint, RejectsAForeignManifest) {
  const TemporaryFolder folder;
  const fs::path path = write_step(folder.path(), 1);
  for (const char* text : {"{", "[]", R"({"format": "other"})",
                           R"({"format": "scone-checkpoint", "format_version": 3})",
                           R"({"format": "scone-checkpoint", "format_version": 2})"}) {
    std::ofstream(path / "manifest.json") << text;
    EXPECT_THROW(read_manifest(path), InputError) << text;
    EXPECT_EQ(checkpoint_problems(path).size(), 1U) << text;
  }
  std::ofstream(path / "manifest.json") << R"({"format": "scone-checkpoint", "format_version": 1})";
  EXPECT_THAT(checkpoint_problems(path).at(0),
              AllOf(HasSubstr("expected format version 2, found 1"),
                    HasSubstr("finish the run with the program version that wrote it")));
}

TEST(Checkpoint, AnyChangedByteOfTheManifestIsFound) {
  const TemporaryFolder folder;
  const fs::path path = write_step(folder.path(), 1) / "manifest.json";
  const std::string text = read_bytes(path);
  ASSERT_NO_THROW(parse_manifest(path, text));
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (const int bit : {0, 3, 5}) {
      std::string changed = text;
      changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
      EXPECT_THROW(parse_manifest(path, changed), InputError) << "byte " << i << ", bit " << bit;
    }
    EXPECT_THROW(parse_manifest(path, text.substr(0, i)), InputError) << "cut at " << i;
  }
}

TEST(Checkpoint, AManifestWhoseBoxesDoNotFitIsRefused) {
  const TemporaryFolder folder;
  const fs::path path = write_step(folder.path(), 1) / "manifest.json";
  const auto message = [&](const char* pointer, const nlohmann::json& value) -> std::string {
    auto json = nlohmann::json::parse(read_bytes(path));
    json.erase("xxh3");
    EXPECT_NO_THROW(parse_manifest(path, seal_manifest(json.dump())));
    json[nlohmann::json::json_pointer(pointer)] = value;
    try {
      parse_manifest(path, seal_manifest(json.dump()));
    } catch (const InputError& error) {
      return error.what();
    }
    return "nothing thrown";
  };
  const std::string tensor = "/tensors/parameters~1main.a";
  const std::string box = tensor + "/boxes/0";
  EXPECT_THAT(message((tensor + "/shape").c_str(), {4, 4}), HasSubstr("12 of its 16 elements"));
  EXPECT_THAT(message((tensor + "/shape").c_str(), {std::int64_t{1} << 40, std::int64_t{1} << 40}),
              HasSubstr("2^60"));
  EXPECT_THAT(message((box + "/begin").c_str(), {1, 0}), HasSubstr("not inside its shape"));
  EXPECT_THAT(message((box + "/begin").c_str(), {0}), HasSubstr("not inside its shape"));
  EXPECT_THAT(message((box + "/offset").c_str(), 100000), HasSubstr("beyond the end"));
  EXPECT_THAT(message((box + "/offset").c_str(), -4), HasSubstr("beyond the end"));
  EXPECT_THAT(message((box + "/file").c_str(), "rank-00001.h5"), HasSubstr("rank-00001.h5"));
  EXPECT_THAT(message("/files", {{"../x", {{"bytes", 1}, {"xxh3", ""}}}}),
              HasSubstr("not a file of this folder"));
}

TEST(Checkpoint, TooLittleSpaceNamesNeededAndFree) {
  const TemporaryFolder folder;
  try {
    require_free_space(folder.path(), std::int64_t{1} << 60);
    FAIL() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("1152921504606846976 bytes needed"));
  }
}

}  // namespace
}  // namespace scone
