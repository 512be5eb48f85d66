#include "data/match_annotations.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "data/batch_stream.h"
#include "data/hdf5_file.h"
#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

class MatchAnnotationsTest : public testing::Test {
 protected:
  MatchAnnotationsTest() {
    write_shard(folder_ / "a.h5", random_documents(1, 200, 60, 40), 40);
    write_shard(folder_ / "b.h5", random_documents(2, 300, 90, 40), 40);
    corpus_ = std::make_unique<TokenCorpus>(std::vector<std::filesystem::path>{folder_.path()});
    FgramBuildOptions options;
    options.size = 900;
    options.min_count = 3;
    build_fgram_vocabulary(*self_, *corpus_, options, folder_ / "fgrams");
  }
  BatchStreamOptions windows() const {
    BatchStreamOptions options;
    options.sequence_length = 37;  // windows begin inside documents
    options.batch_sequences = 8;
    return options;
  }
  TemporaryFolder folder_;
  std::unique_ptr<TokenCorpus> corpus_;
  std::unique_ptr<Communicator> self_ = make_self_communicator();
};

TEST_F(MatchAnnotationsTest, BatchesAreTheSameWithAndWithout) {
  const FgramVocabulary vocabulary(folder_ / "fgrams");
  std::vector<std::vector<std::int64_t>> live;
  {
    BatchStream stream(*corpus_, &vocabulary, windows());
    for (int i = 0; i < 40; ++i) live.push_back(stream.next().match);
  }
  EXPECT_EQ(MatchAnnotations(*corpus_, vocabulary).annotated_tokens(), 0);
  write_match_annotations(*self_, *corpus_, vocabulary);
  EXPECT_EQ(MatchAnnotations(*corpus_, vocabulary).annotated_tokens(), corpus_->tokens());
  BatchStream stream(*corpus_, &vocabulary, windows());
  for (int i = 0; i < 40; ++i) ASSERT_EQ(stream.next().match, live[static_cast<std::size_t>(i)]);
}

TEST_F(MatchAnnotationsTest, SameBytesOnTwoRanks) {
  const FgramVocabulary vocabulary(folder_ / "fgrams");
  write_match_annotations(*self_, *corpus_, vocabulary);
  const std::string a = bytes_of_file(folder_ / "a.h5.matches"),
                    b = bytes_of_file(folder_ / "b.h5.matches");
  run_as_threads(2, [&](Communicator& communicator) {
    write_match_annotations(communicator, *corpus_, vocabulary);
  });
  EXPECT_TRUE(a == bytes_of_file(folder_ / "a.h5.matches"));
  EXPECT_TRUE(b == bytes_of_file(folder_ / "b.h5.matches"));
}

TEST_F(MatchAnnotationsTest, AnotherVocabularysAreNotUsed) {
  write_match_annotations(*self_, *corpus_, FgramVocabulary(folder_ / "fgrams"));
  const FgramVocabulary smaller(folder_ / "fgrams", 500), shorter(folder_ / "fgrams", 0, 3);
  EXPECT_EQ(MatchAnnotations(*corpus_, smaller).annotated_tokens(), 0);
  EXPECT_EQ(MatchAnnotations(*corpus_, shorter).annotated_tokens(), 0);
  // Nor those of a shard that has since been made anew.
  write_shard(folder_ / "a.h5", random_documents(3, 100, 60, 40), 40);
  const TokenCorpus changed({folder_.path()});
  const FgramVocabulary vocabulary(folder_ / "fgrams");
  EXPECT_EQ(MatchAnnotations(changed, vocabulary).annotated_tokens(), changed.shards()[1].tokens);
}

TEST_F(MatchAnnotationsTest, DamageIsTold) {
  const FgramVocabulary vocabulary(folder_ / "fgrams");
  write_match_annotations(*self_, *corpus_, vocabulary);
  const std::filesystem::path path = folder_ / "a.h5.matches";
  const std::int64_t offset = Hdf5File::open(path).dataset_offset("/match_length");
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(offset);
    for (int i = 0; i < 400; ++i) file.put(5);
  }
  EXPECT_THROW(verify_annotation(path), InputError);
  EXPECT_EQ(verify_annotation(folder_ / "b.h5.matches").tokens, corpus_->shards()[1].tokens);
  const MatchAnnotations annotations(*corpus_, vocabulary);
  try {
    for (std::int64_t d = 0; d < 20; ++d) {
      const TokenCorpus::Range range = corpus_->document(d);
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(range.end - range.begin));
      std::vector<std::int64_t> ids(tokens.size());
      corpus_->read(range.begin, tokens);
      annotations.match(range.begin, tokens, ids);
    }
    FAIL() << "nothing was thrown";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("a.h5.matches"));
  }
  std::filesystem::resize_file(path, 100);
  EXPECT_THROW(MatchAnnotations(*corpus_, vocabulary), InputError);
}

}  // namespace
}  // namespace scone
