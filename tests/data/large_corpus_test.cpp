// Corpora of more than 2^32 tokens, in sparse files: they take no more of the disk than what is
// written into them.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <vector>

#include "data/batch_stream.h"
#include "data/hdf5_file.h"
#include "shard_writer.h"

namespace scone {
namespace {

constexpr std::int64_t gibi = std::int64_t{1} << 30;

/// A shard whose tokens are 0 but for `written`, which begins at `place`.
void write_sparse_shard(const std::filesystem::path& path, std::int64_t tokens,
                        const std::vector<std::int64_t>& offsets, std::int64_t place,
                        const std::vector<std::uint16_t>& written) {
  Hdf5File file = Hdf5File::create(path);
  file.set_attribute("format", "scone-tokens");
  file.set_attribute("format_version", std::int64_t{1});
  file.set_attribute("tokenizer_fingerprint", "0123");
  file.set_attribute("vocabulary_size", std::int64_t{5000});
  file.set_attribute("end_of_document", std::int64_t{-1});
  file.set_attribute("tokens", tokens);
  file.set_attribute("documents", static_cast<std::int64_t>(offsets.size()) - 1);
  file.set_attribute("text_bytes", 4 * tokens);
  file.set_attribute("checksum", path.filename().string());
  file.create_dataset("/tokens", H5T_NATIVE_UINT16, {tokens});
  file.write_part("/tokens", H5T_NATIVE_UINT16, place, static_cast<std::int64_t>(written.size()),
                  written.data());
  file.write("/document_offsets", H5T_NATIVE_INT64, {static_cast<std::int64_t>(offsets.size())},
             offsets.data());
  file.close();
}

TEST(LargeCorpus, PositionsHave64Bits) {
  const TemporaryFolder folder;
  const std::int64_t first = 5 * gibi + 3, second = 3 * gibi;  // tokens
  std::vector<std::uint16_t> marks(3000);
  for (std::size_t i = 0; i < marks.size(); ++i) marks[i] = static_cast<std::uint16_t>(i + 1);
  // The marks lie beyond 2^32 tokens of the first shard, and at the end of the second.
  const std::int64_t place = 4 * gibi + 1001;
  write_sparse_shard(folder / "a.h5", first, {0, 7, place + 10, first}, place, marks);
  const std::int64_t end_place = second - 3000;
  write_sparse_shard(folder / "b.h5", second, {0, end_place, second}, end_place, marks);
  struct stat status {};
  ASSERT_EQ(::stat((folder / "a.h5").c_str(), &status), 0);
  EXPECT_GT(status.st_size, 10 * gibi);
  if (status.st_blocks * 512 > gibi / 8) GTEST_FAIL() << "the file system keeps no sparse files";

  const TokenCorpus corpus({folder.path()});
  ASSERT_EQ(corpus.tokens(), first + second);
  std::vector<std::int32_t> read(3000);
  for (const std::int64_t from : {place, first + end_place}) {
    corpus.read(from, read);
    EXPECT_TRUE(std::equal(read.begin(), read.end(), marks.begin())) << from;
    EXPECT_EQ(corpus.document_of(from + 10).end, from == place ? first : first + second);
  }
  EXPECT_EQ(corpus.document_of(place + 9).begin, 7);
  EXPECT_EQ(corpus.document(3).begin, first);

  // The stream: two samples in the middle of the marks, whose numbers times the length need more
  // than 32 bits.
  BatchStreamOptions options;
  options.sequence_length = 1000;
  options.batch_sequences = 2;
  options.shuffle = false;
  const std::int64_t sample = place / 1000 + 1;
  BatchStream stream(corpus, nullptr, options, {0, sample});
  EXPECT_EQ(stream.samples_per_epoch(), (first + second - 1 + 999) / 1000);
  const Batch batch = stream.next();
  for (std::int64_t i = 0; i < 1900; ++i) {
    const std::int64_t mark = sample * 1000 + i - place;
    ASSERT_EQ(batch.tokens[static_cast<std::size_t>(i)], mark + 1) << i;
  }
  EXPECT_EQ(batch.state_after.sample, sample + 2);

  // Shuffled: the epoch's last samples, on two ranks, are windows of the corpus.
  options.shuffle = true;
  options.data = {1, 2};
  const std::int64_t samples = stream.samples_per_epoch();
  BatchStream shuffled(corpus, nullptr, options, {4, samples - 2});
  const std::int64_t expected = SamplePermutation(options.seed, 4, samples)(samples - 1);
  ASSERT_GE(expected, 0);
  std::vector<std::int32_t> window(1000);
  corpus.read(expected * 1000, window);
  EXPECT_EQ(shuffled.next().tokens, window);
}

}  // namespace
}  // namespace scone
