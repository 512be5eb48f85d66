#include "checkpoint/bundle_statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <vector>

#include "checkpoint/bake.h"
#include "checkpoint/bundle.h"
#include "model/ops/ops.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

class StatisticsTest : public ::testing::Test {
 protected:
  StatisticsTest() : run_(folder_.path()), path_(folder_.path() / "bundle") {
    random_vocabulary(900, 40, 5, run_.tokenizer_fingerprint).save(folder_.path() / "larger.h5");
    BakeOptions options;
    options.source = run_.folder;
    options.bundle = path_;
    options.vocabulary = folder_.path() / "larger.h5";
    options.file_bytes = kTableDataOffset + 400 * 64;
    const auto self = make_self_communicator();
    bake_bundle(options, cpu_backend(), *self);
  }
  /// Puts a number into each place of a row of the first file.
  void fill_row(std::int64_t id, float value) const {
    std::fstream stream(path_ / "table/rows-00000.bin",
                        std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(kTableDataOffset + 64 * id);
    const std::vector<float> row(16, value);
    stream.write(reinterpret_cast<const char*>(row.data()), 64);
  }

  TemporaryFolder folder_;
  TinyRun run_;
  fs::path path_;
};

TEST_F(StatisticsTest, AreThoseOfTheRows) {
  fill_row(3, 0.0F);
  fill_row(4, INFINITY);
  fill_row(5, 100.0F);
  const Bundle bundle = open_bundle(path_);
  const TableStatistics statistics = measure_table(*bundle.table);
  EXPECT_EQ(statistics.payload_bytes, 900 * 64);
  EXPECT_EQ(statistics.table_bytes, 900 * 64 + 3 * 4096);
  EXPECT_EQ(statistics.index_memory_bytes,
            static_cast<std::int64_t>(fs::file_size(path_ / kTableIndexFile)));
  EXPECT_EQ(statistics.zero_rows, 1);
  EXPECT_EQ(statistics.not_finite, 1);

  const FgramVocabulary vocabulary(folder_.path() / "larger.h5");
  std::vector<std::vector<double>> norms(5);
  std::vector<std::int64_t> fgrams(5, 0);
  std::int64_t unused = 0;
  for (std::int64_t id = 0; id < 900; ++id) {
    const auto length = static_cast<std::size_t>(vocabulary.length(id));
    if (length > 4) {
      ++unused;
      continue;
    }
    ++fgrams[length];
    std::vector<float> row(16);
    bundle.table->lookup({&id, 1}, row);
    double sum = 0;
    for (const float value : row) sum += double{value} * value;
    if (!std::isfinite(sum)) continue;
    norms[length].push_back(std::sqrt(sum));
    norms[0].push_back(std::sqrt(sum));
  }
  EXPECT_GT(unused, 0);
  EXPECT_EQ(statistics.unused, unused);
  EXPECT_EQ(statistics.fgrams, fgrams);
  const auto check = [](const RowNorms& found, std::vector<double> expected) {
    ASSERT_EQ(found.rows, static_cast<std::int64_t>(expected.size()));
    ASSERT_GT(found.rows, 3);
    std::sort(expected.begin(), expected.end());
    double sum = 0;
    for (const double norm : expected) sum += norm;
    // Norms are kept in fp32.
    EXPECT_NEAR(found.mean, sum / static_cast<double>(expected.size()), 0x1p-23 * expected.back());
    EXPECT_FLOAT_EQ(static_cast<float>(found.least), static_cast<float>(expected.front()));
    EXPECT_FLOAT_EQ(static_cast<float>(found.most), static_cast<float>(expected.back()));
    for (std::size_t quarter = 1; quarter <= 3; ++quarter) {
      // The least that a quarter of the norms do not exceed.
      std::size_t at = 0;
      while (4 * (at + 1) < quarter * expected.size()) ++at;
      EXPECT_FLOAT_EQ(static_cast<float>(found.quartiles[quarter - 1]),
                      static_cast<float>(expected[at]));
    }
  };
  check(statistics.norms, norms[0]);
  EXPECT_EQ(statistics.norms.least, 0);
  EXPECT_EQ(statistics.norms.most, 400);
  ASSERT_EQ(statistics.norms_by_length.size(), 5U);
  for (std::size_t length = 2; length <= 4; ++length)
    check(statistics.norms_by_length[length], norms[length]);
  EXPECT_EQ(statistics.norms_by_length[0].rows, 0);
}

}  // namespace
}  // namespace scone
