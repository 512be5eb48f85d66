#include "checkpoint/bundle_convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/bake.h"
#include "checkpoint/bundle.h"
#include "checkpoint/durable_file.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "tiny_run.h"
#include "worst_error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr std::int64_t kFileBytes = kTableDataOffset + 100 * 64;  // a hundred fp32 rows

std::set<std::string> files_of(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) names.insert(fs::relative(entry.path(), folder).string());
  return names;
}

void expect_same(const fs::path& left, const fs::path& right) {
  EXPECT_EQ(files_of(left), files_of(right));
  for (const std::string& name : files_of(left))
    EXPECT_TRUE(read_bytes(left / name) == read_bytes(right / name)) << name;
}

class ConvertTest : public ::testing::Test {
 protected:
  ConvertTest() : run_(folder_.path()) {
    options_.source = bake("fp32", RowType::fp32);
    options_.bundle = folder_.path() / "converted";
    options_.file_bytes = kFileBytes;
  }
  fs::path bake(const std::string& name, RowType type, std::int64_t size = 0,
                std::int64_t file_bytes = kFileBytes, const fs::path& vocabulary = {}) const {
    BakeOptions options;
    options.source = run_.folder;
    options.bundle = folder_.path() / name;
    options.type = type;
    options.file_bytes = file_bytes;
    options.vocabulary = vocabulary;
    if (size > 0) {
      if (vocabulary.empty()) options.vocabulary = run_.vocabulary_path;
      options.vocabulary_size = size;
    }
    const auto self = make_self_communicator();
    bake_bundle(options, cpu_backend(), *self);
    return options.bundle;
  }
  std::string error() const {
    try {
      convert_bundle(options_);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }
  /// That nothing is left of a conversion that failed.
  void expect_nothing_made() const {
    EXPECT_FALSE(fs::exists(options_.bundle));
    EXPECT_FALSE(fs::exists(options_.bundle.string() + ".tmp"));
  }

  TemporaryFolder folder_;
  TinyRun run_;
  ConvertOptions options_;
};

TEST_F(ConvertTest, FromFp32GivesTheFilesOfABake) {
  for (const RowType type : {RowType::fp32, RowType::bf16, RowType::fp16, RowType::int8}) {
    options_.type = type;
    options_.bundle = folder_.path() / (std::string("converted-") + name_of(type));
    const ConvertResult result = convert_bundle(options_);
    EXPECT_EQ(result.rows, 600);
    EXPECT_EQ(result.type, type);
    EXPECT_FALSE(result.rounded_before());
    expect_same(bake(std::string("baked-") + name_of(type), type), options_.bundle);
    EXPECT_TRUE(bundle_problems(options_.bundle).empty());
  }
}

TEST_F(ConvertTest, FilesOfAnotherSizeAreThoseOfABake) {
  options_.type = RowType::bf16;
  options_.file_bytes = kTableDataOffset + 70 * 64;  // borders that the source's files do not have
  convert_bundle(options_);
  expect_same(bake("baked", RowType::bf16, 0, options_.file_bytes), options_.bundle);
  EXPECT_TRUE(fs::exists(options_.bundle / "table/rows-00008.bin"));
  options_.source = options_.bundle;
  options_.bundle = folder_.path() / "again";
  options_.type.reset();
  options_.file_bytes = kFileBytes;
  EXPECT_EQ(convert_bundle(options_).type, RowType::bf16);
  expect_same(bake("baked-again", RowType::bf16), options_.bundle);
}

/// The description without what depends on the rows' last bits.
nlohmann::json without_row_checksums(const fs::path& bundle) {
  nlohmann::json json = read_json_file(bundle / "bundle.json");
  for (auto& [name, file] : json.at("files").items())
    if (name.starts_with("table/rows-")) file.erase("xxh3");
  return json;
}

TEST_F(ConvertTest, TheFirstFgramsAreThoseOfABake) {
  for (const std::int64_t size : {1, 199, 350}) {
    for (const RowType type : {RowType::fp32, RowType::int8}) {
      const std::string name = std::to_string(size) + name_of(type);
      options_.rows = size;
      options_.type = type;
      options_.bundle = folder_.path() / ("converted-" + name);
      EXPECT_EQ(convert_bundle(options_).rows, size);
      EXPECT_TRUE(bundle_problems(options_.bundle).empty());
      const fs::path baked = bake("baked-" + name, type, size);
      EXPECT_EQ(files_of(options_.bundle), files_of(baked));
      for (const char* file : {"model.safetensors", "tokenizer.json", kTableIndexFile})
        EXPECT_TRUE(read_bytes(options_.bundle / file) == read_bytes(baked / file)) << file;
      EXPECT_EQ(without_row_checksums(options_.bundle), without_row_checksums(baked));
      const FgramVocabulary vocabulary(run_.vocabulary_path, size);
      const Bundle bundle = open_bundle(options_.bundle), expected = open_bundle(baked);
      EXPECT_EQ(bundle.matcher->fingerprint(), vocabulary.fingerprint());
      EXPECT_EQ(bundle.matcher->max_length(), vocabulary.max_length());
      EXPECT_EQ(bundle.table->index().find(vocabulary.tokens(size - 1)), size - 1);
      // The rows are the source's to the bit. A bake of fewer f-grams computes them in other
      // batches, so its last bits may differ: products of up to 64 terms of a few units.
      const Bundle source = open_bundle(options_.source);
      double worst = 0;
      for (std::int64_t id = 0; id < size; ++id) {
        std::vector<float> found(16), own(16), fresh(16), stored_own(16);
        std::vector<std::byte> stored(64, std::byte{0});
        bundle.table->lookup({&id, 1}, found);
        source.table->lookup({&id, 1}, own);
        expected.table->lookup({&id, 1}, fresh);
        encode_row(type, own, stored.data());
        decode_row(type, stored.data(), stored_own);
        EXPECT_EQ(found, stored_own) << id;
        float scale = 0;
        std::memcpy(&scale, stored.data() + 16, sizeof(scale));
        const double step = type == RowType::int8 ? double{scale} * 1.001 : 0;
        for (std::size_t i = 0; i < 16; ++i) {
          const double difference = std::fabs(double{found[i]} - double{fresh[i]});
          worst = worse(worst, difference - step);
          EXPECT_LE(difference, step + 64 * 0x1p-22) << id;
        }
      }
      std::printf("%s of %ld f-grams: %.3g beyond a step from a bake's\n", name_of(type),
                  static_cast<long>(size), worst);
    }
  }
}

TEST_F(ConvertTest, FgramsLongerThanTheModelsAreKeptOrRefused) {
  // The vocabulary's 5-grams have rows that are never looked up, and no keys in the index.
  random_vocabulary(900, 40, 5, run_.tokenizer_fingerprint).save(folder_.path() / "larger.h5");
  options_.source = bake("larger", RowType::fp32, 0, kFileBytes, folder_.path() / "larger.h5");
  options_.type = RowType::fp16;
  convert_bundle(options_);
  expect_same(bake("larger-fp16", RowType::fp16, 0, kFileBytes, folder_.path() / "larger.h5"),
              options_.bundle);
  options_.bundle = folder_.path() / "first";
  options_.rows = 899;
  EXPECT_THAT(error(), HasSubstr("--fgrams-size 899"));
  expect_nothing_made();
}

TEST_F(ConvertTest, FromALossyTypeItSaysSo) {
  options_.source = bake("int8", RowType::int8);
  options_.type = RowType::fp32;
  EXPECT_TRUE(convert_bundle(options_).rounded_before());
  EXPECT_TRUE(bundle_problems(options_.bundle).empty());
  const Bundle coarse = open_bundle(options_.source), wide = open_bundle(options_.bundle);
  for (std::int64_t id = 0; id < 600; ++id) {
    std::vector<float> expected(16), found(16);
    coarse.table->lookup({&id, 1}, expected);
    wide.table->lookup({&id, 1}, found);
    EXPECT_EQ(found, expected);
  }
}

TEST_F(ConvertTest, DamageIsNamedAndNotPassedOn) {
  options_.type = RowType::bf16;
  for (const char* name : {"model.safetensors", "tokenizer.json", "table/index.bin",
                           "table/rows-00000.bin", "table/rows-00005.bin"}) {
    const fs::path path = options_.source / name;
    const std::string whole = read_bytes(path);
    flip_byte(path, static_cast<std::int64_t>(whole.size()) - 1);
    EXPECT_THAT(error(), HasSubstr(name));
    expect_nothing_made();
    flip_byte(path, static_cast<std::int64_t>(whole.size()) - 1);
    fs::resize_file(path, whole.size() - 1);
    EXPECT_THAT(error(), HasSubstr(name));
    fs::remove(path);
    EXPECT_THAT(error(), HasSubstr(name));
    expect_nothing_made();
    std::ofstream(path, std::ios::binary) << whole;
  }
  // In the rows of the last file that are left out.
  options_.rows = 150;
  const fs::path second = options_.source / "table/rows-00001.bin";
  flip_byte(second, kTableDataOffset + 64 * 80);
  EXPECT_THAT(error(), HasSubstr("rows-00001.bin"));
  flip_byte(second, kTableDataOffset + 64 * 80);
  EXPECT_EQ(error(), "");
}

TEST_F(ConvertTest, WhatCannotBeConvertedIsRefused) {
  options_.rows = 601;
  EXPECT_THAT(error(), HasSubstr("600 f-grams"));
  options_.rows = 0;
  const nlohmann::json good = read_json_file(options_.source / "bundle.json");
  nlohmann::json other = good;
  other["format_version"] = 1;
  std::ofstream(options_.source / "bundle.json") << other.dump();
  EXPECT_THAT(error(), HasSubstr("version"));
  std::ofstream(options_.source / "bundle.json") << good.dump(2) << "\n";
  // An index of other f-grams, with its right size and checksum.
  const fs::path fewer = bake("fewer", RowType::fp32, 300);
  const fs::path index = options_.source / kTableIndexFile;
  const std::string own = read_bytes(index);
  fs::copy_file(fewer / kTableIndexFile, index, fs::copy_options::overwrite_existing);
  other = good;
  other["files"].update(describe_files(options_.source, {kTableIndexFile}));
  std::ofstream(options_.source / "bundle.json") << other.dump();
  EXPECT_THAT(error(), HasSubstr("index belongs to another bundle"));
  std::ofstream(index, std::ios::binary) << own;
  std::ofstream(options_.source / "bundle.json") << good.dump(2) << "\n";
  expect_nothing_made();

  options_.bundle = folder_.path() / "baseline";
  const TemporaryFolder elsewhere;
  const TinyRun baseline(elsewhere.path(), true);
  BakeOptions bake_options;
  bake_options.source = baseline.folder;
  bake_options.bundle = elsewhere.path() / "bundle";
  const auto self = make_self_communicator();
  bake_bundle(bake_options, cpu_backend(), *self);
  options_.source = bake_options.bundle;
  EXPECT_THAT(error(), HasSubstr("baseline"));
  expect_nothing_made();
}

TEST_F(ConvertTest, TargetsAreNotReplacedUnasked) {
  options_.type = RowType::bf16;
  const fs::path other = folder_.path() / "converted.tmp";
  fs::create_directories(other / "table");  // nobody knows whose
  EXPECT_THAT(error(), HasSubstr("is nothing that scone left unfinished; move it away"));
  EXPECT_TRUE(fs::exists(other / "table"));
  std::ofstream(other / ".unfinished").put('\n');  // of one that was killed
  EXPECT_EQ(error(), "");
  EXPECT_THAT(error(), HasSubstr("exists"));
  options_.overwrite = true;
  options_.type = RowType::int8;
  EXPECT_EQ(error(), "");
  EXPECT_EQ(open_bundle(options_.bundle).table->layout().type, RowType::int8);
  options_.bundle = run_.checkpoint;
  EXPECT_THAT(error(), HasSubstr("no bundle"));
  // In its own place.
  options_.bundle = options_.source;
  EXPECT_EQ(error(), "");
  expect_same(bake("int8", RowType::int8), options_.source);
  // What is read would be removed.
  fs::rename(options_.source, folder_.path() / "place.tmp");
  options_.source = folder_.path() / "place.tmp";
  options_.bundle = folder_.path() / "place";
  EXPECT_THAT(error(), HasSubstr("place.tmp"));
  EXPECT_TRUE(bundle_problems(options_.source).empty());
  options_.bundle = folder_.path() / "unfinished";
  fs::create_directories(folder_.path() / "unfinished.tmp");
  std::ofstream(folder_.path() / "unfinished.tmp/bake.json") << "{}";
  EXPECT_THAT(error(), HasSubstr("unfinished bake"));
  EXPECT_TRUE(fs::exists(folder_.path() / "unfinished.tmp/bake.json"));
}

TEST_F(ConvertTest, RowsThatAreNotFiniteAreNotRoundedAgain) {
  const fs::path file = options_.source / "table/rows-00001.bin";
  {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(kTableDataOffset + 64 * 7 + 8);
    const float infinity = std::numeric_limits<float>::infinity();
    stream.write(reinterpret_cast<const char*>(&infinity), sizeof(infinity));
  }
  nlohmann::json json = read_json_file(options_.source / "bundle.json");
  json["files"].update(describe_files(options_.source, {"table/rows-00001.bin"}));
  std::ofstream(options_.source / "bundle.json") << json.dump();
  options_.type = RowType::int8;
  EXPECT_THAT(error(), HasSubstr("f-gram 107"));
  expect_nothing_made();
}

}  // namespace
}  // namespace scone
