#include <gtest/gtest.h>

#include "data/fgram_statistics.h"
#include "data/fgram_vocabulary_builder.h"
#include "shard_writer.h"

namespace scone {
namespace {

TEST(FgramsMpi, SameFileAndCoverageAsOneRank) {
  const auto world = make_mpi_communicator();
  const TemporaryFolder folder;  // one a rank: the shard is the same everywhere
  write_shard(folder / "shard.h5", random_documents(21, 400, 80, 100), 100);
  const TokenCorpus corpus({folder / "shard.h5"});
  FgramBuildOptions options;
  options.size = 1500;
  options.min_count = 3;

  const FgramVocabulary together = build_vocabulary(*world, corpus, options);
  const auto self = make_self_communicator();
  const FgramVocabulary alone = build_vocabulary(*self, corpus, options);
  together.save(folder / "together.h5");
  alone.save(folder / "alone.h5");
  EXPECT_EQ(alone.size(), 1500);
  EXPECT_TRUE(bytes_of_file(folder / "together.h5") == bytes_of_file(folder / "alone.h5"));

  const FgramCoverage coverage = measure_coverage(*world, corpus, together);
  const FgramCoverage expected = measure_coverage(*self, corpus, alone);
  EXPECT_EQ(coverage.positions, corpus.tokens());
  EXPECT_EQ(coverage.matched, expected.matched);
}

}  // namespace
}  // namespace scone
