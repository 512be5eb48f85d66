#include "checkpoint/table/fgram_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <fstream>
#include <random>

#include "parallel/error.h"
#include "tiny_table.h"

namespace scone {
namespace {

using test::TinyFgrams;
using testing::HasSubstr;

class FgramTableTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;

  std::string message_of_opening() const {
    try {
      const FgramTable table(folder_.path());
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  }
};

TEST_F(FgramTableTest, GivesRowsInFp32) {
  const TinyFgrams fgrams = test::make_fgrams(256, 700, 4, 1);
  for (const RowType type : {RowType::fp32, RowType::bf16, RowType::fp16, RowType::int8}) {
    for (const std::int64_t width : {1, 3, 48, 129}) {
      test::write_tiny_bundle(folder_.path(), fgrams, type, width, 1 << 16);
      for (const TableAccess access : {TableAccess::ram, TableAccess::mmap, TableAccess::direct}) {
        const FgramTable table(folder_.path(), {access, 8, 10000});
        EXPECT_EQ(table.rows(), 700);
        EXPECT_EQ(table.width(), width);
        std::vector<std::int64_t> ids;
        for (std::int64_t i = 0; i < 1000; ++i) ids.push_back(i * 31 % 700);
        std::vector<float> rows(ids.size() * static_cast<std::size_t>(width));
        table.lookup(ids, rows);
        for (std::size_t i = 0; i < ids.size(); ++i) {
          const std::vector<float> expected = test::row_of(ids[i], width);
          float largest = 0;
          for (const float value : expected) largest = std::max(largest, std::fabs(value));
          for (std::size_t j = 0; j < expected.size(); ++j) {
            const float found = rows[i * expected.size() + j];
            // Half a unit in the last place; of int8, half of the scale and its rounding.
            const float bound = type == RowType::fp32   ? 0.0F
                                : type == RowType::bf16 ? std::fabs(expected[j]) * 0x1p-8F
                                : type == RowType::fp16
                                    ? std::fabs(expected[j]) * 0x1p-11F + 0x1p-25F
                                    : largest / 127 * (0.5F + 1e-5F);
            ASSERT_NEAR(found, expected[j], bound) << name_of(type) << " " << ids[i] << " " << j;
          }
        }
        std::vector<std::byte> records(ids.size() *
                                       static_cast<std::size_t>(table.layout().bytes_of_record()));
        table.read(ids, records);
        std::vector<std::byte> record(records.size() / ids.size());
        encode_row(type, test::row_of(ids[999], width), record.data());
        EXPECT_TRUE(std::equal(record.begin(), record.end(), records.end() - std::ssize(record)));
      }
    }
  }
}

TEST_F(FgramTableTest, RefusesIdsAndSizesOutOfRange) {
  test::write_tiny_bundle(folder_.path(), test::make_fgrams(256, 700, 4, 1), RowType::fp32, 4,
                          1 << 16);
  for (const TableAccess access : {TableAccess::ram, TableAccess::mmap, TableAccess::direct}) {
    const FgramTable table(folder_.path(), {access, 8, 0});
    std::vector<float> out(8, 5.0F);
    for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{700}, INT64_MIN, INT64_MAX}) {
      const std::int64_t ids[] = {0, bad};
      EXPECT_THROW(table.lookup(ids, out), std::out_of_range);
    }
    EXPECT_THAT(out, testing::Each(5.0F));
    const std::int64_t ids[] = {0, 1};
    EXPECT_THROW(table.lookup(ids, {out.data(), 7}), std::out_of_range);
    std::vector<std::byte> records(127);
    EXPECT_THROW(table.read(ids, records), std::out_of_range);
  }
}

TEST_F(FgramTableTest, AnEmptyTableHasNoRows) {
  test::write_tiny_bundle(folder_.path(), test::make_fgrams(256, 0, 4, 1), RowType::bf16, 4, 1);
  for (const TableAccess access : {TableAccess::ram, TableAccess::mmap, TableAccess::direct}) {
    const FgramTable table(folder_.path(), {access, 8, 0});
    EXPECT_EQ(table.rows(), 0);
    table.lookup({}, {});
    const std::int64_t id = 0;
    float out[4];
    EXPECT_THROW(table.lookup({&id, 1}, out), std::out_of_range);
  }
}

TEST_F(FgramTableTest, RefusesWhatIsNoBundleOrBelongsToAnother) {
  const TinyFgrams fgrams = test::make_fgrams(256, 700, 4, 1);
  const auto bundle = folder_.path() / "bundle.json";
  const auto write = [&] {
    test::write_tiny_bundle(folder_.path(), fgrams, RowType::bf16, 32, 1 << 14);
  };
  EXPECT_THAT(message_of_opening(), HasSubstr("bundle.json: cannot be opened"));
  write();
  EXPECT_EQ(message_of_opening(), "no error");
  const std::array<const char*, 3> changes[] = {
      {"scone-bundle", "xcone-bundle", "bundle.json: format: expected \"scone-bundle\""},
      {"\"format_version\": 2", "\"format_version\": 1", "format_version: expected 2"},
      {"\"width\": 32", "\"width\": 30", "rows-00000.bin: width: expected 30"},
      {"\"width\": 32", "\"width\": 99", "table.record_bytes: "},
      {"\"size\": 700", "\"size\": 701", "fgrams.size: expected 700"},
      {"\"rows\": 700", "\"rows\": 7e2", "bundle.json: "},
      {"\"dtype\": \"bf16\"", "\"dtype\": \"fp16\"", "rows-00000.bin: dtype"},
      {"\"dtype\": \"bf16\"", "\"dtype\": \"fp61\"", "expected fp32, bf16, fp16 or int8"},
      {"index.bin", "index.bim", "table.index: expected"},
      {"\"rows_per_file\": 1", "\"rows_per_file\": 3", "rows-00000.bin: expected"},
      {"\"rows_per_file\": 1", "\"rows_per_file\":-1", "table.rows_per_file: expected 1.."},
      {"\"max_length\": 4", "\"max_length\": 5", "index.bin: max_length: expected 5"},
      {"fingerprint-1", "fingerprint-2", "rows-00000.bin: fgrams"},
      {"\"fgrams\"", "\"xgrams\"", "fgrams"}};
  for (const auto& [from, to, message] : changes) {
    write();
    test::replace_text(bundle, from, to);
    EXPECT_THAT(message_of_opening(), HasSubstr(message)) << to;
  }
  std::ofstream(bundle) << R"({"format": "scone-bundle", "format_version": 2, "table": null})";
  EXPECT_THAT(message_of_opening(), HasSubstr("a model without f-grams: it has no table"));
}

TEST_F(FgramTableTest, NamesAMissingOrCutOrForeignFile) {
  const TinyFgrams fgrams = test::make_fgrams(256, 700, 4, 1);
  const auto write = [&] {
    return test::write_tiny_bundle(folder_.path(), fgrams, RowType::bf16, 32, 1 << 14);
  };
  ASSERT_GT(write().files(), 3);
  const auto file = folder_.path() / "table/rows-00002.bin";
  std::filesystem::remove(file);
  EXPECT_THAT(message_of_opening(), HasSubstr("rows-00002.bin: No such file"));
  write();
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  EXPECT_THAT(message_of_opening(), HasSubstr("rows-00002.bin: expected"));
  write();
  std::filesystem::copy_file(folder_.path() / "table/rows-00001.bin", file,
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(message_of_opening(), HasSubstr("rows-00002.bin: first_row: expected"));
  write();
  test::make_fgrams(256, 700, 4, 2).write(folder_.path() / "table/index.bin");
  EXPECT_THAT(message_of_opening(), HasSubstr("the index belongs to another bundle"));
  test::make_fgrams(256, 600, 4, 1).write(folder_.path() / "table/index.bin");
  EXPECT_THAT(message_of_opening(), HasSubstr("index.bin: rows: expected 700"));
  std::filesystem::remove(folder_.path() / "table/index.bin");
  EXPECT_THAT(message_of_opening(), HasSubstr("index.bin: cannot be opened"));
}

/// Of a million look-ups one in ten thousand has a wrong key: it finds none, the others their own.
TEST_F(FgramTableTest, NeverGivesAWrongRow) {
  constexpr std::int64_t rows = 1000000, width = 4;
  const TinyFgrams fgrams = test::make_fgrams(50257, rows, 5, 1);
  test::write_tiny_bundle(folder_.path(), fgrams, RowType::fp32, width, std::int64_t{1} << 25);
  const FgramTable table(folder_.path());
  std::mt19937_64 random(3);
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> offsets{0}, ids(rows);
  const test::IsFgram is_fgram(fgrams);
  int wrong = 0;
  std::vector<bool> is_wrong;
  for (std::int64_t i = 0; i < rows; ++i) {
    auto key = fgrams.tokens(static_cast<std::int64_t>(random() % rows));
    is_wrong.push_back(i % 10000 == 5000);
    while (is_wrong.back()) {
      auto& token = key[random() % key.size()];
      const auto right = token;
      token = static_cast<std::int32_t>(random() % 50257);
      if (!is_fgram(key)) break;
      token = right;
    }
    tokens.insert(tokens.end(), key.begin(), key.end());
    offsets.push_back(std::ssize(tokens));
  }
  table.index().find(tokens, offsets, ids);
  std::vector<std::int64_t> found;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ASSERT_EQ(ids[i] < 0, is_wrong[i]) << i;
    if (ids[i] < 0) {
      ++wrong;
      continue;
    }
    found.push_back(ids[i]);
    places.push_back(i);
  }
  EXPECT_EQ(wrong, 100);
  std::vector<float> out(found.size() * width);
  table.lookup(found, out);
  for (std::size_t i = 0; i < found.size(); ++i) {
    const auto id = static_cast<std::int64_t>(out[i * width] + 256 * out[i * width + 1] +
                                              65536 * out[i * width + 2]);
    ASSERT_EQ(id, found[i]);
    const auto begin = tokens.begin() + offsets[places[i]];
    const auto end = tokens.begin() + offsets[places[i] + 1];
    ASSERT_EQ(fgrams.tokens(id), std::vector<std::int32_t>(begin, end));
  }
}

}  // namespace
}  // namespace scone
